"""Tables of what can be added from outside: rewards, benchmarks, prompts, sanity pairs, generators.

A name is looked up, in this order, among
1. what was registered by ``@register_…`` in a module that is already imported,
2. the system's own modules in ``BUILT_IN``, which are imported when their name is asked for,
3. the plugins named by the environment variable ``SECONDLOOK_PLUGINS``,
4. the entry points of installed packages (group ``secondlook.rewards`` and so on). The miniature,
   ``secondlook.mini``, is found like this too: see ``pyproject.toml``.

Importing this module imports none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from secondlook.errors import InputError

T = TypeVar("T")
Registered = TypeVar("Registered", bound=Callable[..., Any])

PLUGINS_VARIABLE = "SECONDLOOK_PLUGINS"
"""Environment variable of plugins to load: files or modules, separated like the folders of PATH."""

BUILT_IN: dict[str, dict[str, str]] = {
    "rewards": {
        "vlm": "secondlook.rewards.vlm",
        "local": "secondlook.rewards.vlm",
        "self_judge": "secondlook.rewards.self_judge",
    },
    "benchmarks": {
        "geneval": "secondlook.evals.geneval",
        "geneval-long": "secondlook.evals.geneval",
        "compbench": "secondlook.evals.compbench",
        "dsg": "secondlook.evals.dsg",
        "dpg": "secondlook.evals.dpg_bench",
        "pie": "secondlook.evals.pie_bench",
        "gedit": "secondlook.evals.gedit",
        "pope": "secondlook.evals.pope",
    },
    "generators": {
        "model": "secondlook.data.generators",
        "diffusers": "secondlook.data.generators",
        "folder": "secondlook.data.folder_generator",
    },
}
"""Of each group, the names of the system itself and the module that registers each."""


class Registry(Generic[T]):
    """Names of one group of things. ``group`` is also the entry points' ``secondlook.<group>``."""

    def __init__(self, group: str, built_in: dict[str, str] | None = None):
        self.group = group
        self._built_in = dict(BUILT_IN.get(group, {}) if built_in is None else built_in)
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that puts a class or function under ``name`` and returns it unchanged.

        The same definition may be registered again (a notebook's cell run twice). Raises InputError
        for an empty name, for one that another thing, the system itself or an installed package
        has, and for what is neither a class nor a function.
        """
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{self.group}: {name!r} is no name; register under a word")

        def add(thing: T) -> T:
            if not callable(thing):
                raise InputError(
                    f"{self.group}: {name!r} is {thing!r}, which cannot be called; register a "
                    "function or a class"
                )
            earlier_thing = self._registered.get(name)
            if earlier_thing is not None and origin(earlier_thing) != origin(thing):
                raise InputError(
                    f"{self.group}: {name!r} is registered by {origin(earlier_thing)} and by "
                    f"{origin(thing)}; choose another name for one of them"
                )
            owner_module = self._module_of(name)
            if owner_module is not None and _package(origin(thing)) != _package(owner_module):
                raise InputError(
                    f"{self.group}: {name!r} of {origin(thing)} is a name that {owner_module} "
                    "already has; choose another"
                )
            self._registered[name] = thing
            return thing

        return add

    def get(self, name: str) -> T:
        """What is registered under ``name``. Raises InputError that lists the known names."""
        if name not in self._registered:
            self._find(name)
        if name not in self._registered:
            raise InputError(
                f"{self.group}: {name!r} is unknown; known are {', '.join(self.names())}"
            )
        return self._registered[name]

    def names(self) -> list[str]:
        """All known names in alphabetical order. Entry points are listed without loading them."""
        load_environment_plugins()
        return sorted({*self._registered, *self._built_in, *self._entry_points()})

    def _find(self, name: str) -> None:
        """Import what may register ``name``."""
        if name in self._built_in:
            importlib.import_module(self._built_in[name])
            return
        load_environment_plugins()
        entry_point = self._entry_points().get(name)
        # a plugin that was just loaded may have registered it
        if name not in self._registered and entry_point is not None:
            self._load(entry_point)

    def _module_of(self, name: str) -> str | None:
        """The module that is to register a name: the system's own, or an installed package's."""
        if name in self._built_in:
            return self._built_in[name]
        entry_point = self._entry_points().get(name)
        return None if entry_point is None else entry_point.module

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=f"secondlook.{self.group}")}

    def _load(self, entry_point: EntryPoint) -> None:
        """Load an installed package's entry point: a module that registers the name by itself, or
        the thing itself, which is then put under the entry point's name."""
        try:
            loaded = entry_point.load()
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.group}: {entry_point.name!r} is declared by an installed package as "
                f"{entry_point.value!r}, which cannot be loaded: {_reason(error)}"
            ) from error
        if entry_point.name in self._registered:  # the module did it, as it was imported
            return
        if isinstance(loaded, ModuleType):
            raise InputError(
                f"{self.group}: {entry_point.value!r} registers no {entry_point.name!r}; the entry "
                "point's name must be the registered one"
            )
        self.register(entry_point.name)(loaded)


def origin(thing: Any) -> str:
    """ "module.name" of a class, a function, or of an object's class."""
    definition = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{definition.__module__}.{definition.__qualname__}"


def _package(module: str) -> str:
    """ "secondlook" of "secondlook.mini.plugin"."""
    return module.split(".")[0]


def _reason(error: BaseException) -> str:
    """One line of an error: its class and its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


# ---------------------------------------------------------------------------------------- plugins

_plugins: set[str] = set()
"""Files (resolved) and modules that were loaded, or are being loaded."""


def load_plugin(plugin: str) -> None:
    """Import a plugin, a ``.py`` file or an importable module, whose ``@register_…`` then count.

    A plugin that was loaded before is not run again. Raises InputError where it is not there or
    fails while it is imported.
    """
    is_file = plugin.endswith(".py")
    plugin_key = str(Path(plugin).resolve()) if is_file else plugin
    if plugin_key in _plugins:
        return
    _plugins.add(plugin_key)  # first: while it is imported, it may ask for what it registers
    try:
        if is_file:
            _run_file(Path(plugin))
        else:
            importlib.import_module(plugin)
    except BaseException as error:
        _plugins.discard(plugin_key)
        if isinstance(error, InputError) or not isinstance(error, (Exception, SystemExit)):
            raise
        raise InputError(
            f"plugin: {plugin!r} cannot be loaded: {_reason(error)}; give a .py file or a module "
            "that Python can import"
        ) from error


def load_environment_plugins() -> None:
    """Load the plugins that ``SECONDLOOK_PLUGINS`` names."""
    for plugin in os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep):
        if plugin.strip():
            load_plugin(plugin.strip())


def load_config_plugins(values: dict[str, Any]) -> None:
    """Take ``plugins``, a list of files and modules, out of a config's values and load them.

    Raises InputError.
    """
    plugins = values.pop("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise InputError(
            f"config: plugins is {plugins!r}; give a list of .py files and modules in quotes"
        )
    for plugin in plugins:
        load_plugin(plugin)


def _run_file(path: Path) -> None:
    """Run a file as a module of its own; modules beside it cannot be imported by it."""
    if not path.is_file():
        raise InputError(f"plugin: {str(path)!r} is not a file; give a .py file that is there")
    # two files of the same name in different folders are two modules
    digest = sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_name = f"secondlook_plugin_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # both exist for a path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


# ----------------------------------------------------------------------------------------- groups

rewards: Registry[Callable[..., Any]] = Registry("rewards")
benchmarks: Registry[Callable[..., Any]] = Registry("benchmarks")
prompts: Registry[Callable[..., Any]] = Registry("prompts")
sanity_pairs: Registry[Callable[..., Any]] = Registry("sanity_pairs")
generators: Registry[Callable[..., Any]] = Registry("generators")


def register_reward(name: str) -> Callable[[Registered], Registered]:
    """Register a reward, chosen by ``[[rewards]] kind = "name"`` in a config.

    It is a function ``(prompt, image)`` that returns a number in [0, 1], a ``Score``, or None where
    no score could be had, or a class with the methods of ``secondlook.rewards.reward.Reward``.
    """
    return _decorator(rewards, name)


def register_benchmark(name: str) -> Callable[[Registered], Registered]:
    """Register a benchmark, a class as ``secondlook.evals.benchmark`` describes it."""
    return _decorator(benchmarks, name)


def register_prompts(name: str) -> Callable[[Registered], Registered]:
    """Register a prompt source, chosen by ``prompts = "name"``: a function that returns a list of
    prompts, or a class with ``draw``, as ``secondlook.data.prompts.PromptSource`` describes it."""
    return _decorator(prompts, name)


def register_sanity_pairs(name: str) -> Callable[[Registered], Registered]:
    """Register pictures of known verdict, chosen by ``sanity_pairs = "name"``: a function of a seed
    that returns (good pairs, bad pairs), each a list of (prompt, image)."""
    return _decorator(sanity_pairs, name)


def register_generator(name: str) -> Callable[[Registered], Registered]:
    """Register a source of pictures for ``data build``, chosen by ``[[generators]] kind = "name"``,
    as ``secondlook.data.generators.Generator`` describes it."""
    return _decorator(generators, name)


def _decorator(
    registry: Registry[Callable[..., Any]], name: str
) -> Callable[[Registered], Registered]:
    def add(thing: Registered) -> Registered:
        registry.register(name)(thing)
        return thing

    return add
