"""`ChatTemplate`: how an instruction-tuned model writes the turns of a conversation."""

import dataclasses
import re

import keras

from keras_betakd.data.images import IMAGE_MARK


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation as a template writes it.

    Attributes:
        template: the `ChatTemplate`.
        segments: its text in pieces, `(text, is_trained)` each; trained are the answers
            with the marks that end them. None is where the last is to be generated.
    """

    template: "ChatTemplate"
    segments: tuple

    @property
    def text(self):
        return "".join(text for text, _ in self.segments)

    @property
    def _last(self):
        """The number of the last answer's segment; of the end where there is none."""
        answers = [i for i, (_, trained) in enumerate(self.segments) if trained]
        return answers[-1] if answers else len(self.segments)

    @property
    def prompt(self):
        """All that stands before the last answer."""
        return "".join(text for text, _ in self.segments[: self._last])

    @property
    def response(self):
        """The last answer with its end mark; empty where it is to be generated."""
        return "".join(text for text, _ in self.segments[self._last :][:1])

    def trained_last(self):
        """The same conversation with the last answer trained alone."""
        parts = enumerate(self.segments)
        segments = tuple((text, i == self._last) for i, (text, _) in parts)
        return dataclasses.replace(self, segments=segments)


@keras.saving.register_keras_serializable(package="keras_betakd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Writes the turns of a conversation with the marks that a model was tuned with.

    `keras_betakd.preprocessing.chat_template(name)` returns the published ones; make
    one of your own, or change one by `dataclasses.replace`, for another model.

    Args:
        name: its name, which errors and settings show.
        user: the texts before and after what a user writes.
        answer: what stands before an answer, where a prompt ends.
        end: the mark that ends an answer. The model writes it, so it is trained.
        begin: what an answer begins with, where the model writes it: Llama 2's space.
        tokens: the marks that are one token each. Texts of records must not hold them.
        marks: further texts that would be read as marks, such as Llama 2's `[INST]`.
        after_end: what follows the end of an answer; not trained.
        opening: what the conversation begins with, `<bos>` for example.
        closing: what a complete conversation ends with; not trained.
        turn_opening: what each turn of a user begins with but the first.
        last_answer: what stands before the last answer alone: an empty block of
            thoughts, where the model is told not to think.
        system: the texts before and after a system prompt; `None` if the template has
            no place for one.
        system_in: where it stands: `"turn"`, a turn of its own; `"first"` or `"last"`,
            inside the first or the last turn of the user.
        default_system: the system prompt of records without one; `None` for none.
        system_flags: texts that are switches in a system prompt, and refused there.
        strip: which spaces around a user's text are taken away: `"text"`, those around
            all of it; `"pieces"`, those around images, too; `None` for none.
        strip_answer: the same for answers: `"text"`, or `"newlines"` in front of
            answers that an empty block of thoughts precedes.
        strip_system: whether spaces around a system prompt are taken away: `"text"`, or
            `"right"` behind it.
        image: what `render` writes for an image.
        drops_spaces: whether the tokenizer drops spaces after a mark (Phi-3).

    Example:

    >>> from keras_betakd.preprocessing import chat_template
    >>> chat_template("gemma3").render(["Hi"])
    '<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n'
    """

    name: str
    user: tuple
    answer: str
    end: str
    tokens: tuple
    marks: tuple = ()
    begin: str = ""
    after_end: str = ""
    opening: str = ""
    closing: str = ""
    turn_opening: str = ""
    last_answer: str = ""
    system: tuple | None = None
    system_in: str = "turn"
    default_system: str | None = None
    system_flags: tuple = ()
    strip: str | None = None
    strip_answer: str | None = None
    strip_system: str | None = None
    image: str | None = None
    drops_spaces: bool = False

    def __post_init__(self):
        # JSON makes lists of tuples.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        if self.system_in not in ("turn", "first", "last"):
            raise ValueError(
                '`system_in` must be "turn", "first" or "last". Received: '
                f"system_in={self.system_in!r}"
            )

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def render(self, prompts, responses=(), system=None):
        """The text of a conversation, as the published template writes it.

        Args:
            prompts: list of the user's texts, with `<image>` where an image stands.
            responses: list of the answers; the last may be missing, to be generated.
            system: the system prompt; `None` for the template's own.

        Returns:
            A string, with the template's image marks.
        """
        text = self.chat(prompts, responses, system).text
        return text if self.image is None else text.replace(IMAGE_MARK, self.image)

    def chat(self, prompts, responses=(), system=None):
        """The `Chat` of a conversation; arguments as for `render`.

        `<image>` marks stay, for the model's own preprocessor to replace.
        """
        system = self.default_system if system is None else system
        own_turn = system is not None and self.system_in == "turn"
        text = self.opening + (self._system_text(system) if own_turn else "")
        segments, last = [], len(prompts) - 1
        is_complete = len(responses) == len(prompts)
        for i, prompt in enumerate(prompts):
            holds_system = system is not None and i == self._system_turn(last)
            before = self._system_text(system) if holds_system else ""
            text += (self.turn_opening if i else "") + self._user_turn(prompt, before)
            text += self.answer + (self.last_answer if i == last else "")
            segments.append((text, False))
            if i < len(responses):
                answer = self._answer(responses[i], i == last)
                segments.append((self.begin + answer + self.end, is_complete))
                text = self.after_end
        if is_complete:
            segments.append((self.after_end + self.closing, False))
        return Chat(self, tuple(segments))

    def _system_turn(self, last):
        """The number of the user's turn that holds the system prompt."""
        return {"first": 0, "last": last}.get(self.system_in)

    def _system_text(self, system):
        strip = {"text": str.strip, "right": str.rstrip}.get(self.strip_system, str)
        return self.system[0] + strip(system) + self.system[1]

    def _user_turn(self, prompt, before):
        if self.strip == "pieces":
            pieces = re.split(f"({re.escape(IMAGE_MARK)})", prompt)
            text = before + "".join(piece.strip() for piece in pieces)
        else:
            text = before + prompt
            text = text.strip() if self.strip == "text" else text
        return self.user[0] + text + self.user[1]

    def _answer(self, response, is_last):
        if self.strip_answer == "text":
            return response.strip()
        if self.strip_answer == "newlines" and (is_last or not self.last_answer):
            return response.lstrip("\n")
        return response
