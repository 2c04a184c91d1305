"""Shim."""

from bertorch.encoder import onednn

use_onednn = onednn.use_onednn
