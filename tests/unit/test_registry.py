"""What can be added from outside: registries, plugins, and the settings of what is registered."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from PIL import Image
from pydantic import Field

from secondlook import registry
from secondlook.config import load, parse
from secondlook.data.build_config import BuildConfig
from secondlook.data.generators import GeneratorConfig, Shard, make_generator
from secondlook.data.prompts import open_prompts
from secondlook.data.sanity_pairs import open_sanity_pairs
from secondlook.errors import InputError
from secondlook.llm.missing import why_missing
from secondlook.plugin_settings import build, check_settings
from secondlook.registry import Registry
from secondlook.rewards.config import RewardConfig, as_reward, make_reward
from secondlook.rewards.reward import Score, score
from secondlook.train.rl.algorithms import register_algorithm
from secondlook.train.rl.config import RLConfig
from secondlook.types import Prompt

IMAGE = Image.new("RGB", (4, 4), (255, 0, 0))
TWO = [("a", IMAGE), ("b", IMAGE)]


def installed(folder: Path, group: str, entries: str) -> None:
    """An installed package's metadata with entry points."""
    metadata = folder / "outside-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[secondlook.{group}]\n{entries}\n")


def test_names_are_listed_without_importing_what_they_name():
    script = (
        "import sys; from secondlook import registry; print(*registry.rewards.names());"
        "print([m for m in sys.modules if m.startswith(('secondlook.mini', 'torch', 'numpy'))])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    names, modules = result.stdout.splitlines()
    assert {"local", "mini", "self_judge", "vlm"} <= set(names.split()) and modules == "[]"


def test_a_name_is_registered_once():
    table: Registry = Registry("things", {"own": "secondlook.mini.plugin"})

    @table.register("one")
    def first():
        return 1

    assert table.get("one") is first and table.names() == ["one", "own"]
    table.register("one")(first)  # a notebook's cell run twice

    def other():
        return 2

    with pytest.raises(InputError, match=r"things: 'one' is registered by .*first and by .*other"):
        table.register("one")(other)
    with pytest.raises(InputError, match=r"'own' of .*other is a name that secondlook.mini.plu"):
        table.register("own")(other)
    with pytest.raises(InputError, match="things: 'two' is unknown; known are one, own"):
        table.get("two")
    with pytest.raises(InputError, match="'' is no name"):
        table.register("")


def test_entry_points_are_loaded_when_their_name_is_asked_for(
    clean_registries, tmp_path, monkeypatch
):
    entries = "loaded = outside_rewards:third\nsaid = outside_rewards\nbroken = outside_broken"
    installed(tmp_path, "rewards", entries + "\nsilent = outside_silent")
    (tmp_path / "outside_rewards.py").write_text(
        "from secondlook.registry import register_reward\n"
        "def third(prompt, image): return 0.3\n"
        "@register_reward('said')\ndef said(prompt, image): return 0.4\n"
    )
    (tmp_path / "outside_broken.py").write_text("import nonesuch_module\n")
    (tmp_path / "outside_silent.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"loaded", "said", "broken"} <= set(registry.rewards.names())
    assert "outside_rewards" not in sys.modules
    assert as_reward("loaded")([("p", IMAGE)])[0].value == 0.3
    assert as_reward("said")([("p", IMAGE)])[0].value == 0.4
    with pytest.raises(InputError, match=r"'broken' is declared .* cannot be loaded: Module.*none"):
        registry.rewards.get("broken")
    with pytest.raises(InputError, match="'outside_silent' registers no 'silent'"):
        registry.rewards.get("silent")


def test_the_miniature_is_a_plugin_like_any(clean_registries):
    """It is found by its entry points; the system's own table names none of its modules."""
    of_system = [module for names in registry.BUILT_IN.values() for module in names.values()]
    assert not [module for module in of_system if module.startswith("secondlook.mini")]
    for group in ("rewards", "benchmarks", "prompts", "sanity_pairs", "generators"):
        table = getattr(registry, group)
        assert all(table.get(name) for name in table.names()), "each is registered by its module"
    assert "mini-geneval" in registry.benchmarks.names()

    def mini(prompt, image):
        return 1.0

    with pytest.raises(InputError, match=r"'mini' .*secondlook\.mini"):
        registry.register_reward("mini")(mini)


PLUGIN = """
from secondlook import registry
RUNS = globals().get("RUNS", 0) + 1

@registry.register_reward("bright")
def bright(prompt, image, floor: float = 0.0):
    return max(floor, image.getpixel((0, 0))[0] / 255)
"""


def test_plugins_are_files_modules_or_named_by_the_environment(
    clean_registries, tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(PLUGIN)
    registry.load_plugin(str(tmp_path / "mine.py"))
    registry.load_plugin(str(tmp_path / ".." / tmp_path.name / "mine.py"))  # once is enough
    assert as_reward("bright")(TWO)[0].value == 1.0
    second = PLUGIN.replace('"bright"', '"second"')
    (tmp_path / "second_plugin.py").write_text(second)
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugin("second_plugin")
    assert "second" in registry.rewards.names()
    for name in ("third", "fourth"):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace('"bright"', f'"{name}"'))
    files = os.pathsep.join(str(tmp_path / f"{name}.py") for name in ("third", "fourth"))
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, files)
    assert {"third", "fourth"} <= set(registry.rewards.names())
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, str(tmp_path / "none.py"))
    with pytest.raises(InputError, match=r"plugin: .*none\.py' is not a file"):
        registry.rewards.get("fifth")


def test_a_plugin_that_fails_is_one_sentence(clean_registries, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(InputError, match=r"plugin: .*broken\.py' cannot be loaded: SyntaxError"):
        registry.load_plugin(str(broken))
    broken.write_text(PLUGIN)  # mended, it is loaded
    registry.load_plugin(str(broken))
    assert "bright" in registry.rewards.names()


def test_a_config_names_its_plugins(clean_registries, tmp_path):
    plugin, toml = tmp_path / "mine.py", tmp_path / "rl.toml"
    plugin.write_text(PLUGIN)
    rewards = '[[rewards]]\nkind = "bright"\nfloor = 0.25\n'
    toml.write_text(f'model = "mini"\nplugins = ["{plugin}"]\n{rewards}')
    [config] = load(RLConfig, toml, []).rewards
    assert config.settings.floor == 0.25
    black = Image.new("RGB", (4, 4))
    assert make_reward([config])([("p", black)])[0].value == 0.25
    toml.write_text('model = "mini"\nplugins = "mine.py"\n')
    with pytest.raises(InputError, match=r"config: plugins is 'mine\.py'; give a list"):
        load(RLConfig, toml, [])


def thing(prompt, image, most: Annotated[int, Field(ge=1)] = 3, names: list[str] = []): ...  # noqa: B006


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"most": 0}, "rewards: most = 0 is wrong: it must be at least 1"),
        ({"most": "3"}, "rewards: most = '3' is wrong"),
        ({"most": True}, "rewards: most = True is wrong"),
        ({"names": [1]}, r"rewards: names\.0 = 1 is wrong"),
        ({"least": 1}, "rewards: least is not a setting of 'thing'; known are most, names"),
        (3, "rewards: 3 is wrong; give a table"),
    ],
)
def test_settings_are_checked_by_name_and_type(values, words):
    with pytest.raises(InputError, match=f"^config: {words}"):
        check_settings("rewards", "thing", thing, values, frozenset({"prompt", "image"}))


@dataclass
class Checked:
    share: float = 0.5

    def __post_init__(self):
        if self.share > 1:
            raise ValueError(f"share is {self.share}; it must be at most 1")


def test_a_check_of_all_settings_speaks_for_itself():
    class Sharing:
        Config = Checked

    sentence = "^config: rewards: 'sharing': share is 2.0; it must be at most 1$"
    with pytest.raises(InputError, match=sentence):
        check_settings("rewards", "sharing", Sharing, {"share": 2}, frozenset())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 2}, "algorithm_options: share is 2.0; it must be at most 1"),
        (
            {"shar": 2},
            "algorithm_options.shar is not a setting of this job; did you mean "
            "algorithm_options.share?",
        ),
        ({"xyz": 2}, "algorithm_options.xyz is not .* job; known are algorithm_options.share"),
        ({"share": "x"}, "algorithm_options.share = 'x' is wrong: it must be a number"),
        ({"share": [1]}, r"algorithm_options.share = \[1\] is wrong: .*"),
    ],
)
def test_options_of_an_algorithm_are_named_with_their_table(options, sentence):
    with pytest.raises(InputError, match=f"^config: {sentence}$".replace("?$", r"\?$")):
        parse(Checked, options, "[algorithm_options]", "algorithm_options")


def test_a_check_of_a_whole_job_names_no_field():
    with pytest.raises(InputError, match=r"^config: share is 2.0; it must be at most 1$"):
        parse(Checked, {"share": 2})


def test_settings_fill_keyword_arguments_or_a_config_class():
    class Loose:
        def __init__(self, must: int, device: str = "cpu", many: tuple[int, ...] = (1,)):
            self.held = must, device, many

    class Strict:
        @dataclass(frozen=True)
        class Config:
            url: str

        def __init__(self, config, device):
            self.held = config.url, device

    provided = frozenset({"device", "reasons"})
    settings = check_settings("rewards", "loose", Loose, {"must": 2, "many": [3]}, provided)
    made = build(Loose, settings, device="cuda", reasons=True)
    assert made.held == (2, "cuda", (3,))
    settings = check_settings("rewards", "strict", Strict, {"url": "u"}, provided)
    assert build(Strict, settings, device="cuda", reasons=True).held == ("u", "cuda")
    with pytest.raises(InputError, match="config: rewards: must is missing; 'loose' needs it"):
        check_settings("rewards", "loose", Loose, {}, provided)


def test_a_function_is_a_reward_and_what_fails_is_missing():
    def odd(prompt, image):
        if prompt == "crash":
            raise RuntimeError("out of order")
        return {"none": None, "nan": float("nan"), "half": 0.5, "score": Score(1.0, True, "r")}[
            prompt
        ]

    reward = as_reward(odd)
    answers = reward([(p, IMAGE) for p in ("crash", "none", "nan", "half", "score")])
    assert answers[:3] == [None] * 3, "missing, never 0"
    assert answers[3] == Score(0.5, True, "the score is 0.50") and answers[4].reason == "r"
    assert reward.missing.counts.total() == 3
    reward([("crash", IMAGE)])
    assert "RuntimeError: out of order" in why_missing(reward)
    for wrong in (1.5, -0.1, "good", True + 1):
        with pytest.raises(InputError, match=r"reward: .*returned"):
            as_reward(lambda prompt, image, wrong=wrong: wrong)(TWO)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (3, "3 is no reward; give a registered name, a function"),
        (Score, "is no reward; give a registered name, a function"),
        (max, "does not say its parameters|cannot be called"),
        (lambda: 1.0, "cannot be called with a prompt and an image"),
        (lambda prompt, image, weight: 1.0, "cannot be called .*'weight'"),
    ],
)
def test_what_cannot_be_called_is_no_reward(reward, words):
    with pytest.raises(InputError, match=f"^reward: .*{words}"):
        as_reward(reward)


@pytest.mark.parametrize("returned", [1, None, "ab", [0.5, 0.5], [Score(1.0, True, "r")]])
def test_a_function_of_lists_returns_a_list_of_scores(returned):
    items = [(Prompt("a"), IMAGE), (Prompt("b"), IMAGE)]
    words = r"reward: 'test_registry\.test_.*lambda.*' was given a list of 2 .* and returned "
    with pytest.raises(InputError, match=words) as raised:
        score(as_reward(lambda listed: returned), items)
    assert repr(returned) in str(raised.value)
    assert score(as_reward(lambda listed: [None, Score(1.0, True, "r")]), items)[0] is None


def test_a_wrapped_function_is_one_of_a_picture():
    reward = as_reward(lambda *arguments, **settings: 0.5 * len(arguments))
    assert [each.value for each in reward(TWO)] == [1.0, 1.0]


def test_a_function_with_a_source_scores_edits():
    def changed(prompt, image, source=None):
        return 1.0 if source is None else float(source.getpixel((0, 0)) != image.getpixel((0, 0)))

    black = Image.new("RGB", (4, 4))
    items = [(Prompt("a"), IMAGE), (Prompt("b", black), IMAGE), (Prompt("c", IMAGE), IMAGE)]
    drawn, edited, same = score(as_reward(changed), items)
    assert drawn.edit is None and edited.edit == (1.0, 1.0) and same.edit == (0.0, 0.0)
    with pytest.raises(InputError, match="cannot judge edits"):
        score(as_reward(lambda prompt, image: 1.0), items)


def test_a_class_of_whole_batches_is_used_as_it_is(clean_registries):
    @registry.register_reward("batches")
    class Batches:
        def __init__(self, device: str, value: float = 0.25):
            self.device, self.value = device, value

        def __call__(self, items):
            return [Score(self.value, False, self.device) for _ in items]

    config = RewardConfig("batches", settings={"value": 0.75})
    assert make_reward([config], "cuda:1")(TWO) == [Score(0.75, False, "cuda:1")] * 2
    ready = Batches("cpu")
    assert as_reward(ready) is ready


def test_prompts_are_a_list_or_made_up(clean_registries):
    @registry.register_prompts("listed")
    def listed(color: str = "red"):
        return [f"a {color} star", Prompt("make it blue", IMAGE)]

    @registry.register_prompts("counted")
    class Counted:
        def __init__(self, noun: str):
            self.noun = noun

        def draw(self, rng, n):
            return [f"{rng.integers(9)} {self.noun}" for _ in range(n)]

    lines = open_prompts("listed", {"color": "green"}).lines
    assert [line.text for line in lines] == ["a green star", "make it blue"]
    assert lines[1].prompt().source is IMAGE and lines[1].where == "prompt 2 of 'listed'"
    source = open_prompts("counted", {"noun": "cats"})
    drawn = source.draw(np.random.default_rng(0), 5)
    assert drawn == source.draw(np.random.default_rng(0), 5) and drawn[0].text.endswith(" cats")
    assert source.draw(np.random.default_rng(0), 5, [3, 1]) == [drawn[3], drawn[1]]
    assert RLConfig(model="mini", prompts="counted", prompt_options={"noun": "cats"})
    for name, options, words in (
        ("counted", {}, "prompt_options: noun is missing; 'counted' needs it"),
        ("listed", {"colour": "red"}, "prompt_options: colour is not a setting of 'listed'"),
        ("some.txt", {"color": "red"}, r"prompts = 'some\.txt' is a file, which has none"),
        ("mini", {"kinds": {"none": 1.0}}, r"prompt_options\.kinds has 'none'; known are single"),
    ):
        with pytest.raises(InputError, match=words):
            parse(RLConfig, {"model": "mini", "prompts": name, "prompt_options": options})
    with pytest.raises(InputError, match=r"is not a file; give .* a registered name of counted, "):
        open_prompts("nonesuch")
    with pytest.raises(InputError, match="prompts is empty"):
        open_prompts("")


def test_sanity_pairs_come_with_the_prompts_name(clean_registries):
    @registry.register_sanity_pairs("reds")
    def reds(seed, prompt_options):
        prompt = Prompt(f"a {prompt_options.get('color', 'red')} picture {seed}")
        return [(prompt, IMAGE)], [(prompt, Image.new("RGB", (4, 4)))]

    good, bad = open_sanity_pairs(None, "reds", 3, {"color": "blue"})
    assert good[0][0].text == "a blue picture 3" and bad[0][1].getpixel((0, 0)) == (0, 0, 0)
    assert open_sanity_pairs("reds", "prompts.txt", 3, {}) is not None
    assert open_sanity_pairs(None, "prompts.txt", 3, {}) is None
    assert open_sanity_pairs("", "reds", 3, {}) is None
    with pytest.raises(InputError, match="sanity_pairs is 'none', which is not a file"):
        open_sanity_pairs("none", "reds", 3, {})


def test_a_function_is_a_generator(clean_registries):
    @registry.register_generator("plain")
    def plain(prompt, seed, side: int = 4):
        return Image.new("L", (side, side), seed % 256)

    config = GeneratorConfig("plain", images=2, settings={"side": 3})
    prompts = (Prompt("a cat"), Prompt("a dog"))
    made = make_generator(config, load=None, seed=1, device="cpu")
    pictures = made(Shard(0, 0, prompts, 2))
    assert [p.prompt.text for p in pictures] == ["a cat", "a cat", "a dog", "a dog"]
    assert pictures[0].image.size == (3, 3) and pictures[0].image.mode == "RGB"
    assert len({p.seed for p in pictures}) == 4 and pictures[0].source == "plain"
    later = made(Shard(1, 1, prompts[1:], 1))
    assert [p.seed for p in later] == [p.seed for p in pictures[2:]], "of the prompt's number"
    with pytest.raises(InputError, match="'plain' cannot edit"):
        made(Shard(0, 0, (Prompt("make it blue", IMAGE),), 1))
    for settings, words in (
        ({"kind": "plain", "settings": {"size": 3}}, "generators: size is not a setting"),
        ({"kind": "nonesuch"}, "config: generators: 'nonesuch' is unknown; known are diffusers"),
        ({"kind": "model"}, "model is empty; a generator of kind 'model' needs one"),
    ):
        with pytest.raises(InputError, match=words):
            GeneratorConfig(**settings)
    with pytest.raises(InputError, match="render draws its own world's prompts; set prompts = 'mi"):
        BuildConfig([GeneratorConfig("render", "mini")], templates=["a cat"])


def test_what_cannot_be_called_is_not_registered(clean_registries):
    for register in (
        registry.register_reward,
        registry.register_benchmark,
        registry.register_prompts,
        registry.register_sanity_pairs,
        registry.register_generator,
        register_algorithm,
    ):
        with pytest.raises(InputError, match="'five' is 5, which cannot be called; register a"):
            register("five")(5)


def test_a_reward_without_a_call_is_refused(clean_registries):
    @registry.register_reward("silent")
    class Silent:
        pass

    with pytest.raises(InputError, match="reward: silent is no reward"):
        make_reward([RewardConfig("silent")])


def test_a_plugin_that_ends_python_is_told(tmp_path, monkeypatch, clean_registries):
    plugin = tmp_path / "exits.py"
    plugin.write_text("import sys\nsys.exit(7)\n")
    with pytest.raises(InputError, match=r"exits.py' cannot be loaded: SystemExit: 7"):
        registry.load_plugin(str(plugin))
    installed(tmp_path, "rewards", "leaving = exits")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"'leaving' is declared .*cannot be loaded: SystemExit"):
        registry.rewards.get("leaving")


def test_a_reward_that_ends_python_is_a_missing_score():
    def leaving(prompt, image):
        raise SystemExit(3)

    reward = as_reward(leaving)
    assert reward(TWO) == [None, None] and "SystemExit: 3" in why_missing(reward)
