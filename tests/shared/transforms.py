"""What tests of transforms and of derivatives share."""

import pytest

__all__ = ["REFUSED", "TRANSFORMS"]

# What says that a derivative does not exist.
REFUSED = r"has no |have no |there are no |has second derivatives for .* alone"
# Transforms of torch.func make torch warn of itself.
TRANSFORMS = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
