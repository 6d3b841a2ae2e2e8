"""tpbench: token reduction in vision transformers, measured under one harness.

    model = timm.create_model("deit_small_patch16_224", pretrained=True)
    reduced = tpbench.reduce(model, "wkmedoids", "0.7@3,6,9")

Importing the package does nothing: torch is loaded by the first use of a name that needs it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tpbench")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+uninstalled"

__all__ = ["reduce"]


def __getattr__(name: str):
    if name == "reduce":
        from tpbench.vit import reduce

        return reduce
    raise AttributeError(f"module 'tpbench' has no attribute {name!r}")
