"""Two cards say how two runs differ."""

import pytest

from heldout.job.card import AgentCard, CardPart, DatasetCard, MachineCard, ModelCard, RunCard, card_differences

CARD = RunCard(
    heldout="1.0.0",
    agent=AgentCard(
        reference="/home/me/a/agent.py:solve",
        folder="/home/me/a",
        files={"agent.py": "a" * 64, "tools.py": "b" * 64},
        commit="c" * 40,
        is_dirty=False,
        packages={"openai": "1.0"},
    ),
    dataset=DatasetCard(reference="prompts.jsonl", prompts_hash="d" * 64, files={"prompts.jsonl": "e" * 64}),
    model=ModelCard(reference="http://a/v1", served_name="m", listing={"id": "m", "created": 1, "max_model_len": 4096}),
    hyperparameters={"eval_group_size": 4, "sampling_temperature": 1.0},
    machine=MachineCard(host="h", system="Linux 6", processor="x86_64", cores=2, memory_gib=8.0, python="3.12.1"),
)


def changed(**parts: dict[str, object]) -> RunCard:
    """The card with some values of its parts replaced."""
    return CARD.model_copy(
        update={name: getattr(CARD, name).model_copy(update=values) for name, values in parts.items()}
    )


def test_a_card_does_not_differ_from_itself() -> None:
    assert card_differences(CARD, RunCard.model_validate_json(CARD.model_dump_json())) == ()


@pytest.mark.parametrize(
    ("other", "part", "text"),
    [
        (
            changed(agent={"files": {"agent.py": "f" * 64, "tools.py": "b" * 64}}),
            CardPart.AGENT,
            "file agent.py: aaaaaaaaaaaa -> ffffffffffff",
        ),
        (
            changed(agent={"files": {"agent.py": "a" * 64}}),
            CardPart.AGENT,
            "file tools.py: bbbbbbbbbbbb -> none",
        ),
        (changed(agent={"packages": {"openai": "1.1"}}), CardPart.AGENT, "package openai: 1.0 -> 1.1"),
        (
            changed(agent={"is_dirty": True}),
            CardPart.AGENT,
            "git commit: cccccccccccc -> cccccccccccc (dirty)",
        ),
        (
            changed(dataset={"prompts_hash": "0" * 64}),
            CardPart.DATASET,
            "prompts: dddddddddddd -> 000000000000",
        ),
        (
            changed(model={"listing": {"id": "m", "max_model_len": 8}}),
            CardPart.MODEL,
            "/v1/models max_model_len: 4096 -> 8",
        ),
        (
            CARD.model_copy(update={"hyperparameters": {"eval_group_size": 8, "sampling_temperature": 1.0}}),
            CardPart.HYPERPARAMETERS,
            "eval_group_size: 4 -> 8",
        ),
        (CARD.model_copy(update={"heldout": "1.1.0"}), CardPart.HELDOUT, "Heldout: 1.0.0 -> 1.1.0"),
        (changed(machine={"cores": 8}), CardPart.MACHINE, "cores: 2 -> 8"),
    ],
)
def test_a_difference_names_its_part_and_both_values(other: RunCard, part: CardPart, text: str) -> None:
    (difference,) = card_differences(CARD, other)
    assert (difference.part, difference.text) == (part, text)


def test_a_copy_of_an_agent_in_another_folder_is_the_same_agent() -> None:
    assert card_differences(CARD, changed(agent={"reference": "/home/b/agent.py:solve", "folder": "/home/b"})) == ()


def test_what_a_card_does_not_know_is_no_difference() -> None:
    unknown = RunCard(
        heldout="1.0.0",
        agent=AgentCard(reference=CARD.agent.reference),
        dataset=DatasetCard(reference=CARD.dataset.reference),
        model=ModelCard(reference=CARD.model.reference),
        hyperparameters=CARD.hyperparameters,
    )
    assert card_differences(CARD, unknown) == ()


def test_a_server_that_stamps_each_answer_with_the_time_has_not_changed() -> None:
    assert card_differences(CARD, changed(model={"listing": {"id": "m", "created": 9, "max_model_len": 4096}})) == ()
