"""The prompt templates of LLaVA-1.5 and MobileVLM V2, and which tokens are trained.

A conversation is a list of prompts and a list of responses, one for each prompt; the
last response may be missing, to be generated.
"""

from keras_betakd.data.images import IMAGE_MARK

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)
ANSWER_MARK = " ASSISTANT: "
END_MARK = "</s>"


class V1Template:
    """Questions and answers: fine-tuning and evaluation (`"v1"`, `"vicuna_v1"`).

        {system} USER: {prompt} ASSISTANT: {response}</s>USER: ...

    The responses and the end mark after each are trained.
    """

    @staticmethod
    def check(prompts, responses, name):
        for text in (*prompts, *responses):
            for mark in (ANSWER_MARK, END_MARK):
                if mark in text:
                    raise ValueError(
                        f"Record {name} has {mark!r} in its text, which is what ends a "
                        "question or an answer in this template: what is to be trained "
                        "could not be told. Take it out of the text. Received: "
                        f"{text!r}"
                    )

    @staticmethod
    def texts(prompts, responses):
        """The turns of the conversation, each of which is encoded on its own."""
        turns = [f"USER: {_image_first(p)} ASSISTANT:" for p in prompts]
        turns[0] = f"{SYSTEM} {turns[0]}"
        return [
            f"{turn} {response}"
            for turn, response in zip(turns, responses, strict=False)
        ] + turns[len(responses) :]

    def encode(self, prompts, responses, tokenizer):
        """`(token_ids, is_trained)`, two lists of one length."""
        ids, trained = [tokenizer.start_token_id], [False]
        for i, turn in enumerate(self.texts(prompts, responses)):
            found = tokenizer.encode_prompt(turn)[1:]
            if i >= len(responses):
                ids, trained = ids + found, trained + [False] * len(found)
                continue
            # The space after "ASSISTANT:" is part of the answer's first token.
            question = turn[: len(turn) - len(responses[i])]
            start = len(tokenizer.encode_prompt(question)) - 2
            ids += [*found, tokenizer.end_token_id]
            trained += [False] * start + [True] * (len(found) - start + 1)
        return ids, trained


class PlainTemplate:
    """Captions: alignment pre-training (`"plain"`).

        <image>{response}\\n

    The words of the prompt are dropped, the caption and the line break after it are
    trained, and there is no end mark.
    """

    @staticmethod
    def check(prompts, responses, name):
        marks = prompts[0].count(IMAGE_MARK)
        if len(prompts) != 1 or marks != 1:
            raise ValueError(
                "The template 'plain' is for captions: one prompt with one image. "
                f"Received: {len(prompts)} prompts, {marks} images in record {name}"
            )

    @staticmethod
    def encode(prompts, responses, tokenizer):
        """`(token_ids, is_trained)`, two lists of one length."""
        ids = tokenizer.encode_prompt(IMAGE_MARK + "".join(f"{r}\n" for r in responses))
        return ids, [False, False] + [True] * (len(ids) - 2)


def check_conversation(prompts, responses, name):
    """Raises for a conversation that cannot be trained on with any template."""
    if len(prompts) != len(responses):
        raise ValueError(
            f"Every prompt of record {name} needs one response. Received: "
            f"{len(prompts)} prompts, {len(responses)} responses"
        )
    for kind, texts in (("prompt", prompts), ("response", responses)):
        if not all(text.strip() for text in texts):
            raise ValueError(
                f"Record {name} has an empty {kind}, so nothing could be trained. "
                "Leave the record, or its last turns, out."
            )


TEMPLATES = {"v1": V1Template, "plain": PlainTemplate}


def _image_first(prompt):
    """Moves the mark of a single image before the question."""
    if prompt.count(IMAGE_MARK) != 1:
        return prompt
    question = prompt.replace(IMAGE_MARK, "").strip()
    return f"{IMAGE_MARK}\n{question}".strip()
