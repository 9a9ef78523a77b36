"""Decoders of pictures: what their headers say, their orientation and colours, and the matte in them."""
