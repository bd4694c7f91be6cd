"""What is installed beside this package, what each command needs of it, and the pip line that brings what is lacking.

    CORE    pip install compress-budget            checks, reports, explains: under 150 MB
    TORCH   pip install 'compress-budget[torch]'   reads, trains, cuts and exports networks
    SIGN    pip install 'compress-budget[sign]'    signs what a run left, and checks signatures

A command says what it lacks before it begins: a run that trained for an hour must not fail where its files are written.
"""

from importlib.util import find_spec

from compress.errors import UsageError

CORE = {  # what is imported: what is installed, as pyproject.toml lists it
    "click": "click",
    "filelock": "filelock",
    "numpy": "numpy",
    "onnx": "onnx",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "yaml": "pyyaml",
}
EXTRA = {
    "PIL": "pillow",
    "distutils": "setuptools",  # thop imports it, and Python 3.12 no longer brings it
    "matplotlib": "matplotlib",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "thop": "thop",
    "torch": "torch",
    "torchvision": "torchvision",
}
SIGN = {"cryptography": "cryptography"}

_READ = ("torch", "thop", "distutils")
_WRITE = (*_READ, "onnxscript", "onnxruntime")
_NEEDS = {  # by command and by verb; what only some data, limits or pictures need is asked for where it is used
    "compare": (*_WRITE, "matplotlib"),
    "cut": (*_WRITE, "matplotlib"),
    "export": _WRITE,
    "export_model": _WRITE,
    "init": _READ,
    "load": ("torch",),
    "measure": _READ,
    "plan": _READ,
    "run": _WRITE,
}


def demand_for(verb: str) -> None:
    """Raise UsageError where something is not installed that a verb of `compress` or a command always needs."""
    demand(*_NEEDS.get(verb, ()))


def demand(*modules: str) -> None:
    """Raise UsageError, with what to install, where one of these modules of the tables above cannot be found.

    Nothing is imported.
    """
    if lacking := [module for module in modules if not _is_there(module)]:
        raise UsageError(how_to_get(*lacking))


def how_to_get(*modules: str) -> str:
    """Say that these modules, all of one table above, are not installed, and the line that installs them."""
    names = [(CORE | EXTRA | SIGN)[module] for module in modules]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    if set(modules) <= set(CORE):
        return f"{listed} {are} not installed; pip install compress-budget brings {them}."
    if set(modules) <= set(SIGN):
        return f"{listed} {are} not installed; pip install 'compress-budget[sign]' brings {them}."
    line = f"{listed} {are} not installed; pip install 'compress-budget[torch]' brings {them}"
    if "torch" in modules or _is_there("torch"):
        return f"{line}."
    return f"{line} with all that runs need, pip install {' '.join(names)} alone."  # verifying needs no gigabytes


def of_error(error: BaseException) -> str | None:
    """Say the same of the package that an import did not find; None for any other error, and for others' packages."""
    module = error.name if isinstance(error, ModuleNotFoundError) else None  # "torch.nn" is another fault than "torch"
    return how_to_get(module) if module in CORE | EXTRA | SIGN else None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # something that looks for modules says no in this way
        return False
