"""The published chat templates by name, and which presets were tuned with them.

Each writes what the `chat_template` of the model's public tokenizer writes, thoughts
switched off (`enable_thinking=False`). `tests/golden/README.md` says how that was made
sure. PaliGemma and BLIP-2 have none; MobileVLM and LLaVA-1.5 write theirs in their own
preprocessor.
"""

import difflib
import re

from keras_betakd.preprocessing.chat_template import ChatTemplate

# Published templates write today's date; here it stays the same, so that one record
# gives the same numbers every day. Llama 3's is what its template has where the date is
# unknown, SmolLM3's the day on which the model was published.
_LLAMA_DATE = "26 Jul 2024"
_SMOLLM3_DATE = "08 July 2025"

_NO_THOUGHTS = "<think>\n\n</think>\n\n"


def _gemma(name, **options):
    return ChatTemplate(
        name=name,
        opening="<bos>",
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        answer="<start_of_turn>model\n",
        end="<end_of_turn>",
        after_end="\n",
        tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        strip="pieces",
        strip_answer="text",
        **options,
    )


def _gemma4(name, **options):
    return ChatTemplate(
        name=name,
        opening="<bos>",
        user=("<|turn>user\n", "<turn|>\n"),
        answer="<|turn>model\n",
        end="<turn|>",
        after_end="\n",
        tokens=("<bos>", "<|turn>", "<turn|>", *options.pop("tokens", ())),
        marks=("<|channel>", "<channel|>", "<|think|>"),
        system=("<|turn>system\n", "<turn|>\n"),
        strip="pieces",
        strip_answer="text",
        strip_system="text",
        image="<|image|>",
        **options,
    )


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_THOUGHTS = ("<think>", "</think>")


def _qwen(name, default_system=None, tokens=(), **options):
    return ChatTemplate(
        name=name,
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        answer="<|im_start|>assistant\n" + options.pop("answer", ""),
        end="<|im_end|>",
        after_end="\n",
        tokens=("<|im_start|>", "<|im_end|>", *tokens),
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        default_system=default_system,
        **options,
    )


def _qwen3_5(name, **options):
    return _qwen(
        name,
        tokens=_THOUGHTS,
        image=_QWEN_IMAGE,
        strip="text",
        strip_answer="text",
        strip_system="text",
        **options,
    )


def _llama3(name, **options):
    return ChatTemplate(
        name=name,
        opening="<|begin_of_text|>",
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        answer="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        tokens=(
            *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
            "<|eot_id|>",
        ),
        strip="text",
        strip_answer="text",
        strip_system="text",
        **options,
    )


_LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
_LLAMA3_DATES = f"Cutting Knowledge Date: December 2023\nToday Date: {_LLAMA_DATE}\n\n"

_SMOLLM3_SYSTEM = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n"
    f"Today Date: {_SMOLLM3_DATE}\nReasoning Mode: /no_think\n\n"
    "## Custom Instructions\n\n"
)

TEMPLATES = (
    _gemma("gemma"),
    _gemma("gemma3", system=("", "\n\n"), system_in="first", image="<start_of_image>"),
    _gemma(
        "gemma3n", system=("", "\n\n"), system_in="first", image="<image_soft_token>"
    ),
    _gemma4("gemma4"),
    # The larger models write an empty block of thoughts before their answers.
    _gemma4(
        "gemma4_large",
        last_answer="<|channel>thought\n<channel|>",
        tokens=("<|channel>", "<channel|>"),
    ),
    _qwen("qwen1.5", "You are a helpful assistant"),
    _qwen("qwen2", "You are a helpful assistant."),
    _qwen(
        "qwen2.5",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    _qwen("qwen2.5_vl", "You are a helpful assistant.", image=_QWEN_IMAGE),
    _qwen("qwen3_vl", image=_QWEN_IMAGE),
    _qwen("qwen3", tokens=_THOUGHTS, last_answer=_NO_THOUGHTS, strip_answer="newlines"),
    _qwen("qwen3_2507"),
    _qwen3_5("qwen3.5", last_answer=_NO_THOUGHTS),
    _qwen3_5("qwen3.8", answer=_NO_THOUGHTS),
    ChatTemplate(
        name="llama2",
        opening="<s>",
        turn_opening="<s>",
        user=("[INST] ", " [/INST]"),
        answer="",
        begin=" ",
        end=" </s>",
        tokens=("<s>", "</s>"),
        marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        system_in="first",
        strip="text",
        strip_answer="text",
    ),
    _llama3("llama3", system=(_LLAMA3_SYSTEM, "<|eot_id|>")),
    _llama3(
        "llama3.1",
        system=(_LLAMA3_SYSTEM + _LLAMA3_DATES, "<|eot_id|>"),
        default_system="",
    ),
    ChatTemplate(
        name="mistral",
        opening="<s>",
        user=("[INST] ", " [/INST]"),
        answer="",
        end="</s>",
        tokens=("<s>", "</s>"),
        marks=("[INST]", "[/INST]"),
    ),
    ChatTemplate(
        name="mistral0.3",
        opening="<s>",
        user=("[INST] ", "[/INST]"),
        answer="",
        begin=" ",
        end="</s>",
        tokens=("<s>", "</s>", "[INST]", "[/INST]"),
        system=("", "\n\n"),
        system_in="last",
        strip_answer="text",
    ),
    ChatTemplate(
        name="phi3",
        user=("<|user|>\n", "<|end|>\n"),
        answer="<|assistant|>\n",
        end="<|end|>",
        after_end="\n",
        closing="<|endoftext|>",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        marks=("<|endoftext|>",),
        system=("<|system|>\n", "<|end|>\n"),
        drops_spaces=True,
    ),
    ChatTemplate(
        name="smollm3",
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        answer="<|im_start|>assistant\n<think>\n\n</think>\n",
        end="<|im_end|>",
        after_end="\n",
        tokens=("<|im_start|>", "<|im_end|>", *_THOUGHTS),
        system=(_SMOLLM3_SYSTEM, "\n\n"),
        default_system="You are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face.",
        system_flags=("/think", "/no_think", "/system_override"),
        strip_answer="newlines",
        strip_system="right",
    ),
)
_BY_NAME = {template.name: template for template in TEMPLATES}

# What the names of presets, and of public checkpoints, have in common. The first that
# matches counts. Names of keras-hub have no mark where there is no base model (Qwen3).
_PRESETS = (
    # Other tasks, and families whose template is another.
    (r"embedding|guard|shield|translate|function|vault|c2s|math|magistral", None),
    (r"base$|assistant$|code_gemma|coder|agent|thinking|distill", None),
    (r"pali_?gemma|t5_?gemma", None),
    (r"gemma_?-?4.*(26b|31b).*", "gemma4_large"),
    (r"gemma_?-?4", "gemma4"),
    (r"gemma_?-?3n", "gemma3n"),
    (r"gemma_?-?3|medgemma", "gemma3"),
    (r"gemma", "gemma"),
    (r"qwen_?-?3[-_]?vl", "qwen3_vl"),
    (r"qwen_?-?2([._]?5)?[-_]?vl", "qwen2.5_vl"),
    (r"qwen3(\.8|_8_)", "qwen3.8"),
    (r"qwen3(\.[56]|_[56]_)", "qwen3.5"),
    (r"qwen_?-?3.*2507", "qwen3_2507"),
    (r"qwen_?-?3", "qwen3"),
    (r"qwen2[._]5", "qwen2.5"),
    (r"qwen2", "qwen2"),
    (r"qwen1[._]5", "qwen1.5"),
    (r"llama_?-?2", "llama2"),
    (r"llama_?-?3[._][123]", "llama3.1"),
    (r"llama_?-?3", "llama3"),
    (r"mistral_0\.3|mistral.*v0\.3", "mistral0.3"),
    (r"mistral(_0\.2)?_instruct|mistral-7b-instruct|mixtral", "mistral"),
    (r"phi_?-?3", "phi3"),
    (r"smollm3", "smollm3"),
)
_TUNED = re.compile(r"instruct|chat|[-_]it\b|[-_]it[-_]")
# Families whose presets without further mark are instruction-tuned.
_ALWAYS_TUNED = frozenset({"qwen3", "qwen3.5", "qwen3.8", "smollm3", "phi3"})


def chat_template(name):
    """The published chat template of this name.

    Args:
        name: one of `"gemma"` (Gemma 1 and 2), `"gemma3"`, `"gemma3n"`, `"gemma4"` (E2B
            and E4B), `"gemma4_large"`, `"qwen1.5"`, `"qwen2"`, `"qwen2.5"`,
            `"qwen2.5_vl"` (and 2), `"qwen3_vl"`, `"qwen3"`, `"qwen3_2507"`, `"qwen3.5"`
            (and 3.6), `"qwen3.8"`, `"llama2"`, `"llama3"`, `"llama3.1"` (to 3.3),
            `"mistral"` (0.1, 0.2, Mixtral), `"mistral0.3"`, `"phi3"`, `"smollm3"`.

    Returns:
        A `ChatTemplate`.

    Raises:
        ValueError: there is none of this name.

    Example:

    >>> chat_template("qwen2.5").end
    '<|im_end|>'
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = difflib.get_close_matches(str(name).lower(), _BY_NAME, 1)
    advice = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"There is no prompt template {name!r}{advice} Known are {sorted(_BY_NAME)}; "
        'or give "auto", `None`, a `ChatTemplate` or a function.'
    )


def template_of_preset(preset):
    """The name of the template that a preset was tuned with; `None` if none is known.

    Args:
        preset: the name of a preset of keras-hub, or a handle of one.

    Example:

    >>> template_of_preset("gemma3_instruct_4b"), template_of_preset("gemma3_4b")
    ('gemma3', None)
    """
    # "hf://google/gemma-3-4b-it", "kaggle://keras/gemma3/keras/gemma3_instruct_1b/3"
    parts = [part for part in str(preset).lower().split("/") if not part.isdecimal()]
    name = parts[-1] if parts else ""
    for pattern, template in _PRESETS:
        if re.search(pattern, name):
            is_tuned = template in _ALWAYS_TUNED or _TUNED.search(name)
            return template if is_tuned else None
    return None
