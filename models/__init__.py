"""The networks of the published results: ordinary torch modules that know nothing of compression.

A recipe names a factory as a string, `compress.models:vgg16`, just as it names one of yours, `./net.py:make`; nothing
here is privileged. Importing this package imports no torch; touching a factory does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.models.condense import condense
    from compress.models.densenet import densenet, densenet40, densenet100, densenet121
    from compress.models.lenet import lenet5
    from compress.models.plain import plain3net, plain4net
    from compress.models.preact import preact
    from compress.models.resnet import (
        basic3resnet,
        basic4resnet,
        bottleneck4resnet,
        resnet18,
        resnet20,
        resnet32,
        resnet_cifar,
    )
    from compress.models.short import short
    from compress.models.vgg import vgg, vgg16

__all__ = [
    "basic3resnet",
    "basic4resnet",
    "bottleneck4resnet",
    "condense",
    "densenet",
    "densenet40",
    "densenet100",
    "densenet121",
    "lenet5",
    "plain3net",
    "plain4net",
    "preact",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet_cifar",
    "short",
    "vgg",
    "vgg16",
]

_FILES = {
    "condense": ("condense",),
    "densenet": ("densenet", "densenet40", "densenet100", "densenet121"),
    "lenet": ("lenet5",),
    "plain": ("plain3net", "plain4net"),
    "preact": ("preact",),
    "resnet": ("basic3resnet", "basic4resnet", "bottleneck4resnet", "resnet18", "resnet20", "resnet32", "resnet_cifar"),
    "short": ("short",),
    "vgg": ("vgg", "vgg16"),
}


def __getattr__(name: str) -> Any:
    """Import a factory when it is first touched (PEP 562)."""
    for file, factories in _FILES.items():
        if name in factories:
            module = import_module(f".{file}", __name__)
            # Importing vgg.py binds the *file* to the name `vgg` here; the factories are bound over it, all at once.
            globals().update({factory: getattr(module, factory) for factory in factories})
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
