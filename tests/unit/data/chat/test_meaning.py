"""Names that promise meaning, in any spelling; and values that keep no promise."""

import pytest

from sft.data.chat.meaning import can_be_weight, dangers, kind_of, shape_of, words_of

DANGEROUS = [
    ("system", "Be brief.", "system"),
    ("systemPrompt", "Be brief.", "system"),
    ("SYSTEM-MESSAGE", "Be brief.", "system"),
    ("systemprompt", "Be brief.", "system"),
    ("available_tools", [{"name": "f"}], "tools"),
    ("function-definitions", '[{"name": "f"}]', "tools"),
    ("chat_history", [["a", "b"]], "history"),
    ("previousMessages", [{"role": "user"}], "history"),
    ("lossMask", [0, 1], "weight"),
    ("loss-mask", 0, "weight"),
    ("is_trainable", False, "weight"),
    ("train", False, "weight"),
    ("labels", [-100, 5], "weight"),
    ("sample_weights", [1.0], "weight"),
    ("chain_of_thought", "First, ...", "reasoning"),
    ("CoT", "First, ...", "reasoning"),
    ("thinking", False, "switch"),
    ("enable_reasoning", True, "switch"),
    ("reasoning_effort", "high", "switch"),
    ("thinking_budget", 1000, "switch"),
    ("thinking", {"type": "enabled", "budget_tokens": 1000}, "switch"),
    ("backprop", False, "weight"),
    ("w", 0.5, "weight"),
    ("context_only", True, "weight"),
    ("is_context", True, "weight"),
    ("last_turn_only", True, "weight"),
    ("partial", True, "prefill"),
    ("continue_final_message", True, "prefill"),
    ("finish_reason", "length", "verdict"),
    ("stopReason", "MAX_TOKENS", "verdict"),
    ("keep", False, "verdict"),
    ("is_used", 0, "verdict"),
    ("truncated", True, "verdict"),
    ("search_results", ["a"], "context"),
    ("ctxs", [{"title": "a", "text": "b"}], "context"),
    ("image_url", "a.png", "media"),
    ("Audios", ["a.wav"], "media"),
    ("label", True, "preference"),
    ("label", "false", "preference"),
    ("kto_tag", False, "preference"),
    ("rejected_response", "no", "preference"),
    ("retrieved-passages", ["a"], "context"),
    ("context", "a", "context"),
    ("channel", "analysis", "routing"),
    ("eot", False, "routing"),
    ("prefix", True, "prefill"),
    ("persona", "You are Bob.", "system"),
    ("target", False, "weight"),
    ("importance", 0.5, "weight"),
    ("repeats", 3, "weight"),
    ("skip", True, "verdict"),
    ("is_deleted", 1, "verdict"),
    ("is_correct", False, "verdict"),
    ("dialogue", [["a", "b"]], "chat"),
    ("turns", '[{"from": "gpt", "value": "a"}]', "chat"),
    ("inner_monologue", "Hm.", "reasoning"),
    ("screenshot", "a.png", "media"),
    ("choices", ["a", "b"], "context"),
    ("db_schema", "CREATE TABLE t", "context"),
]
HARMLESS = [
    *(("finish_reason", "stop"), ("stop_reason", "end_turn"), ("num_train_turns", 2), ("n_train", 3), ("w", 1)),
    *(("partial", False), ("continue_final_message", False), ("partial_credit", 0.5), ("text_only", True)),
    *(("has_context", True), ("context_only", False), ("tool_use", False), ("keep", True), ("gradient", "blue")),
    *(("learning_objective", "words"), ("table_name", "t"), ("num_shots", 5), ("truncated", False)),
    *(
        ("id", 1),
        ("source", "web"),
        ("score", 0.5),
        ("url", "http://a"),
        ("category", "system"),
        ("metadata", {"a": 1}),
    ),
    *(("system", ""), ("system", None), ("tools", "[]"), ("tools", "null"), ("images", []), ("history", [[None]])),
    *(("system_id", "a7"), ("system_fingerprint", "fp"), ("num_tools", 3), ("has_images", True), ("image_count", 2)),
    *(("history", float("nan")), ("label", "positive"), ("label", 3), ("used_in_training", "yes"), ("reasoning", "on")),
    *(("reasoning_tokens", 100), ("chosen_score", 4.5), ("eot", True), ("ipython", False), ("prefix", False)),
    *(
        ("target", "words"),
        ("importance", 1.0),
        ("skip", False),
        ("deleted", False),
        ("is_correct", True),
        ("turns", 2),
    ),
    *(
        ("is_reasoning_complete", [True]),
        ("options", {"temperature": 0.7}),
        ("document_url", "http://a"),
        ("correct", 0),
    ),
    *(("prompt_messages", [{"role": "user", "content": "a"}]), ("correct", 0), ("turns", 2)),
    *(("ecosystem", "linux"), ("constraint", "short"), ("prompt_id", "x"), ("timestamp", "2024-01-01"), ("level", 3)),
]


@pytest.mark.parametrize(("name", "value", "kind"), DANGEROUS)
def test_what_means_something(name, value, kind):
    assert kind_of(name, value) == kind


@pytest.mark.parametrize(("name", "value"), HARMLESS)
def test_what_is_harmless(name, value):
    assert kind_of(name, value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"train": False}, {"meta": "weight"}),
        ({"loss_mask": 0, "a": 1}, {"meta": "weight"}),
        ({"weight": 0.5}, {"meta": "weight"}),
        ({"loss": 2.31}, {}),  # recorded
        ({"system": "Be brief."}, {}),
    ],
)
def test_a_struct_means_what_a_mask_in_it_means(value, found):
    assert dangers({"meta": value}, ()) == found


def test_all_spellings_are_the_same_words():
    assert {words_of(name) for name in ("lossMask", "loss_mask", "loss-mask", "LOSS_MASK", "LossMask", "lossmask")} == {
        ("loss", "mask")
    }


@pytest.mark.parametrize(
    ("name", "value", "can"),
    [
        ("loss_scaling", 0.5, True),
        ("msgWeight", 1, True),
        ("no_loss", 1, False),
        ("ignoreLoss", 1, False),
        ("train", False, True),
        ("ignoreFlag", True, False),
        ("loss_mask", [0, 1], False),
        ("loss_mask", 0, True),
        ("mask", 0, False),
        ("train_on_inputs", True, False),
        ("advantage", -1.0, False),
        ("mask_loss", True, False),
        ("train_from", 3, False),
        ("upsample", 3, True),
    ],
)
def test_what_says_the_opposite_of_a_weight_is_not_offered_as_one(name, value, can):
    assert can_be_weight(name, value) is can


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "chat"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "chat"),
        ('[{"role": "model", "parts": []}]', "chat"),
        ([{"role": "user", "content": "a"}], None),  # the prompt of RL data
        ([{"name": "f", "parameters": {}}], "tools"),
        ([{"type": "function", "function": {"name": "f", "parameters": {}}}], "tools"),
        ('[{"name": "f", "parameters": {}}]', "tools"),
        ([{"name": "f"}], None),
        ("[not JSON, role", None),
        ([], None),
        ([1, {"role": "assistant"}], None),
    ],
)
def test_conversations_and_schemas_are_known_by_their_shape(value, shape):
    assert shape_of(value) == shape
