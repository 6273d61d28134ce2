"""Writing packages to disk: swapped in whole, hand edits protected, nothing touched outside the folder."""

from archc.output.eject import eject
from archc.output.manifest import MANIFEST_NAME
from archc.output.write import WriteReport, write_package

__all__ = ["MANIFEST_NAME", "WriteReport", "eject", "write_package"]
