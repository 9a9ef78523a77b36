"""Matting of pictures and videos with a trained network: reads, computes and writes, prints nothing."""
