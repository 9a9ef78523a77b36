"""Commands for pictures: to look at them, to make smaller copies, to cut subjects out."""
