"""What somebody does with the folders of finished runs who has transformers, and not this package.

    python tests/families/opened.py FOLDER...

prints one JSON line a folder: the class, keys that did not fit, and for three ways of generating how many of the run's
own predictions came out word for word.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

QUESTION = "Describe the findings in this chest X-ray and write a report."


def open_run(folder: Path) -> dict:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor, write = AutoProcessor.from_pretrained(folder), pipeline("image-text-to-text", model=str(folder))
    images = Path(json.loads((folder / "run.json").read_text())["image_folder"])
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    texts: dict[str, list[str]] = {"generate": [], "pipeline": [], "pixels": []}
    prompts = set()
    for row in rows:
        image = Image.open(images / row["images"][0]).convert("RGB")
        if processor.chat_template:
            content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
            chat = [{"role": "user", "content": content}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            inputs = processor.apply_chat_template(chat, **options)
            texts["pipeline"].append(write(text=chat, return_full_text=False)[0]["generated_text"])
        else:
            inputs = processor(images=image, text="", return_tensors="pt")
            texts["pipeline"].append(write(images=image, text="")[0]["generated_text"])
            pixels = model.generate(pixel_values=inputs["pixel_values"])
            texts["pixels"].append(processor.decode(pixels[0], skip_special_tokens=True))
        prompts.add(int(inputs["input_ids"][0, -1]))
        start = inputs["input_ids"].shape[1] if processor.chat_template else 0
        ids = model.generate(**inputs)[0, start:]
        texts["generate"].append(processor.decode(ids, skip_special_tokens=True))
    wanted = [row["prediction"] for row in rows]
    config = model.generation_config
    return {
        "class": type(model).__name__,
        "misfits": sum(len(keys) for keys in info.values()),
        "studies": len(rows),
        "same": {w: sum(t.strip() == p for t, p in zip(written, wanted)) for w, written in texts.items()},  # noqa: B905
        "generation": [config.max_new_tokens, config.num_beams, config.eos_token_id, config.pad_token_id],
        "prompt_ends_with_the_end": config.eos_token_id in prompts,
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(open_run(Path(name))))
    assert not any(module.split(".")[0] == "hf_medvlm" for module in sys.modules)
