"""The front door: what ``import secondlook`` costs and offers."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

import secondlook


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_takes_no_time_and_no_torch():
    """The fastest of three processes: others may be busy on this machine."""
    code = (
        "import sys, time; began = time.perf_counter(); import secondlook; "
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules); "
        "print(time.perf_counter() - began, sorted(heavy))"
    )
    times = []
    for _ in range(3):
        seconds, heavy = in_fresh_process(code).split(" ", 1)
        assert heavy.strip() == "[]"
        times.append(float(seconds))
    assert min(times) < 0.2


def test_small_names_come_without_torch():
    code = (
        "import sys, secondlook; secondlook.InputError, secondlook.Prompt, secondlook.Episode; "
        "secondlook.register_reward, secondlook.__version__; print('torch' in sys.modules)"
    )
    assert in_fresh_process(code).strip() == "False"


@pytest.mark.parametrize("name", secondlook.__all__)
def test_every_name_is_where_the_door_says(name):
    value = getattr(secondlook, name)
    assert value is getattr(secondlook, name)
    if name != "__version__":
        module = importlib.import_module(f"secondlook.{secondlook._MODULES[name]}")
        assert value is getattr(module, name) and value.__doc__
    assert name in dir(secondlook)


def test_dir_shows_what_users_call_and_nothing_else():
    code = (
        "import secondlook; secondlook.InputError, secondlook.load; "
        "print(*(name for name in dir(secondlook) if not name.startswith('__')))"
    )
    shown_names = in_fresh_process(code).split()
    assert shown_names == [name for name in secondlook.__all__ if name != "__version__"]


def test_help_has_a_text_for_each_field_method_and_property():
    """Fields in the class's own docstring, for ``help`` shows no others."""
    silent = []
    for name in secondlook.__all__:
        public_class = getattr(secondlook, name)
        if not isinstance(public_class, type):
            continue
        if dataclasses.is_dataclass(public_class):
            for field in dataclasses.fields(public_class):
                if f"\n        {field.name}: " not in public_class.__doc__:
                    silent.append(f"{name}.{field.name}")
        for member_name, member in vars(public_class).items():
            is_described = callable(member) or isinstance(member, property)
            if is_described and not member_name.startswith("_") and not member.__doc__:
                silent.append(f"{name}.{member_name}")
    assert not silent


@pytest.mark.parametrize("name", ["train_sft", "train_rl"])
def test_help_of_training_names_recipes_as_settings(name):
    function = getattr(secondlook, name)
    config_text = function.__doc__.partition("config: ")[2].partition("out: ")[0]
    assert "recipe" in config_text and "dictionary" in config_text


def test_whatever_registers_is_a_public_name():
    registry = importlib.import_module("secondlook.registry")
    names = {name for name in vars(registry) if name.startswith("register_")}
    assert names | {"register_algorithm"} <= set(secondlook.__all__)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        secondlook.laod  # noqa: B018


def test_types_are_marked():
    from importlib.resources import files

    assert files("secondlook").joinpath("py.typed").is_file()
