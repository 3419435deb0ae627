"""Image sets with one split convention: classes seen in training are never tested on."""
