"""Which prompt template a model gets, and records written in it."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable

import keras

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.chat_tokens import token_id

PromptTemplate = str | ChatTemplate | Callable | None
"""What `prompt_template` may be; `resolved_template` says what it means."""

# Where a preprocessor keeps the template that its model was tuned with. Private, since
# digests of preprocessors have a template of their own.
_ATTRIBUTE = "_betakd_prompt_template"
# Marks that end answers: a tokenizer with one of them may be that of a chat model.
_ENDS = ("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "[/INST]")
_LOGGER = logging.getLogger("keras_betakd")
_SAID: set[str] = set()


def remember_template(preprocessor, template):
    """Notes on a preprocessor which template its model was tuned with.

    Args:
        preprocessor: a keras-hub preprocessor.
        template: a name, a `ChatTemplate`, or `None` for a model that has none.
    """
    setattr(preprocessor, _ATTRIBUTE, template)


def remembered_template(preprocessor):
    """The template that was noted; `None` if there is none or nothing is known."""
    return getattr(preprocessor, _ATTRIBUTE, None)


def as_template(noted):
    """What was noted on a preprocessor as a `ChatTemplate`, or `None`."""
    return chat_template(noted) if isinstance(noted, str) else noted


def resolved_template(prompt_template, family):
    """What a `prompt_template` of a user means for a model.

    Args:
        prompt_template: `"auto"` for what is known of the model; the name of a template
            (`keras_betakd.preprocessing.chat_template`); a `ChatTemplate`; a function
            of a list of messages; or `None`.
        family: the model's `TextFormat`.

    Returns:
        A `ChatTemplate`, the function, or `None`.

    Raises:
        ValueError: an unknown name, or a family that has no template or its own.
    """
    if isinstance(prompt_template, str) and prompt_template == "auto":
        return _automatic(family)
    if prompt_template is None:
        return None
    if isinstance(prompt_template, str):
        prompt_template = chat_template(prompt_template)
    if isinstance(prompt_template, ChatTemplate):
        if family.chat_form is None:
            raise ValueError(
                f"{type(family.preprocessor).__name__} takes no prompt template: its "
                "family has none, or the preprocessor writes its own. Give "
                f'`prompt_template=None` or "auto". Received: {prompt_template.name!r}'
            )
        return prompt_template
    if callable(prompt_template):
        return prompt_template
    raise ValueError(
        '`prompt_template` must be "auto", the name of a template, a `ChatTemplate`, a '
        f"function of messages, or `None`. Received: {prompt_template!r}"
    )


def by_role(prompt_template, teachers=("teacher",)):
    """The `prompt_template` of each model: a dict by the teachers' names and "student".

    Args:
        prompt_template: one for all, or a dict of `"teacher"`, which stands for every
            teacher, the name of a teacher, and `"student"`.
        teachers: the names of the teachers.
    """
    roles = (*teachers, "student")
    if not isinstance(prompt_template, dict):
        return dict.fromkeys(roles, prompt_template)
    known = dict.fromkeys(("teacher", *roles))
    if set(prompt_template) - set(known):
        raise ValueError(
            "A dict as `prompt_template` has the keys "
            f"{', '.join(repr(name) for name in known)}. "
            f"Received: {sorted(map(str, prompt_template))}"
        )
    every = prompt_template.get("teacher", "auto")
    student = prompt_template.get("student", "auto")
    found = {name: prompt_template.get(name, every) for name in teachers}
    return {**found, "student": student}


def _automatic(family):
    """The template that is known of the model; what was chosen is said once."""
    preprocessor = family.preprocessor
    if family.chat_form is None:
        return None
    model = type(preprocessor).__name__.removesuffix("Preprocessor")
    found = as_template(remembered_template(preprocessor))
    if found is not None:
        _say_once(
            f"prompt_template='auto': prompts of this {model} are written in its own "
            f"chat template, {found.name!r}."
        )
        return found
    if not hasattr(preprocessor, _ATTRIBUTE) and _may_chat(preprocessor.tokenizer):
        _say_once(
            f"prompt_template='auto': nothing says whether this {model} is "
            "instruction-tuned, so its prompts are written as they are. Load it by "
            "`keras_betakd.models.load_model`, which knows by the preset's name, or "
            "give a name as `prompt_template`, or `None`."
        )
    return None


def _may_chat(tokenizer):
    return any(token_id(mark, tokenizer) is not None for mark in _ENDS)


def _say_once(message):
    if message not in _SAID:
        _SAID.add(message)
        _LOGGER.warning(message)


def serialized_template(template):
    """What of a template a configuration holds: a value of JSON.

    Keras' `deserialize_keras_object` brings a `ChatTemplate` or a function back.
    """
    if template is None or template_label(template) == getattr(template, "name", None):
        return template and template.name
    return keras.saving.serialize_keras_object(template)


def template_label(template):
    """A text that is equal for equal templates, to compare and to store.

    Args:
        template: what `resolved_template` returned.

    Returns:
        The name of a published template; of others the name and a digest; of a function
        its name alone, since its code cannot be compared. `None` for none.
    """
    if template is None:
        return None
    if not isinstance(template, ChatTemplate):
        name = getattr(template, "__qualname__", type(template).__qualname__)
        return f"function {getattr(template, '__module__', '')}.{name}"
    try:
        if template == chat_template(template.name):
            return template.name
    except ValueError:
        pass  # none of the published ones has this name
    text = json.dumps(dataclasses.asdict(template), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    return f"{template.name} {digest.hexdigest()}"


# What the label of a cache has where the last answers alone are trained.
LAST_TURN = ", last turn"


def encoding_label(template, trained_turns):
    """The label of a template, and of which answers are trained; `None` for none."""
    label = template_label(template)
    return label if label is None or trained_turns == "all" else label + LAST_TURN


def chats_of(template, family, records):
    """The `Chat` of each record, with `<image>` marks.

    Args:
        template: a `ChatTemplate`.
        family: the model's `TextFormat`.
        records: `CheckedRecords`. Where responses are missing, or one fewer than
            prompts, the last answer is to be generated.

    Raises:
        ValueError: a text with a mark of the template, a number of responses that does
            not fit, or a system prompt that cannot be written. The message names the
            record.
    """
    count = len(records.names)
    responses = records.get("responses") or [[]] * count
    systems = records.get("system") or [None] * count
    rows = zip(records["prompts"], responses, systems, records.names, strict=True)
    return [_chat(template, family, *row) for row in rows]


def _chat(template, family, prompts, responses, system, name):
    _expect_turns(prompts, responses, name)
    _expect_system(template, system, name)
    texts = [("prompt", text) for text in prompts]
    texts += [("response", text) for text in responses]
    texts += [("system prompt", system)] if system is not None else []
    for what, text in texts:
        _expect_no_mark(template, what, text, name)
    for mark in family.own_marks:
        prompts = [text.replace(mark, IMAGE_MARK) for text in prompts]
    return template.chat(prompts, responses, system)


def _expect_turns(prompts, responses, name):
    if len(responses) not in (len(prompts), len(prompts) - 1):
        raise ValueError(
            f"Every prompt of record {name} needs one response; the last one alone may "
            f"be missing, to be generated. Received: {len(prompts)} prompts, "
            f"{len(responses)} responses"
        )


def _expect_system(template, system, name):
    if system is None:
        return
    if template.system is None:
        raise ValueError(
            f"Record {name} has a system prompt, for which the prompt template "
            f"{template.name!r} has no place. Write it into the prompt, or use another "
            "template (`dataclasses.replace(template, system=...)`). Received: "
            f"system={system!r}"
        )
    for flag in template.system_flags:
        if flag in system:
            raise ValueError(
                f"Record {name} has {flag!r} in its system prompt, which is a switch "
                f"in the prompt template {template.name!r} that is not followed here. "
                f"Take it out. Received: system={system!r}"
            )


def _expect_no_mark(template, what, text, name):
    found = [m for m in (*template.tokens, *template.marks) if m in text]
    if not found:
        return
    is_written = template.user[0].strip() in text and template.answer.strip() in text
    written = (
        "It looks as if it was written in a template already, and would be twice: give "
        "the bare texts, or `prompt_template=None`. "
    )
    raise ValueError(
        f"Record {name} has {found[0]!r} in its {what}, which is a mark of the prompt "
        f"template {template.name!r}: the model would take it for the end or the start "
        f"of a turn. {written if is_written else ''}"
        f"Put a space into it ({found[0][0]} {found[0][1:]}), which takes its meaning "
        f"away, or take it out. Received: {what}={text!r}"
    )


def written_by(function, records):
    """Records whose prompts a user's function has written: one turn each.

    Args:
        function: takes a list of messages, `{"role", "content"}` each, from the system
            prompt to the last prompt, and returns the text that the model is given.
        records: `CheckedRecords`.

    Returns:
        Dict of `"prompts"` and, if there are any, `"responses"`: lists of one text.
    """
    count = len(records.names)
    responses = records.get("responses") or [[]] * count
    systems = records.get("system") or [None] * count
    rows = zip(records["prompts"], responses, systems, records.names, strict=True)
    texts = []
    for prompts, answers, system, name in rows:
        _expect_turns(prompts, answers, name)
        text = function(_messages(prompts, answers, system))
        if not isinstance(text, str):
            raise ValueError(
                "The function given as `prompt_template` must return a string. "
                f"Received: {type(text).__name__} for record {name}"
            )
        texts.append([text])
    found = {"prompts": texts}
    turns = zip(records["prompts"], responses, strict=True)
    if all(len(prompts) == len(answers) for prompts, answers in turns):
        found["responses"] = [answers[-1:] for answers in responses]
    return found


def _messages(prompts, responses, system):
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = []
    for i, prompt in enumerate(prompts):
        turns.append({"role": "user", "content": prompt})
        if i + 1 < len(prompts):
            turns.append({"role": "assistant", "content": responses[i]})
    return first + turns
