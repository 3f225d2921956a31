"""Images from descriptions, by an HTTP endpoint of one's own choice.

The protocol: `POST URL` with `{"prompt": "..."}`; the answer is a PNG file. It is saved under the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from moss_train.files import replace_content
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.http import Client, parse_url

MAX_PROMPT = 1000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class Text2Image:
    """An endpoint that draws.

    Args:
        url: Where it is.
        client: With the endpoint among its allowed places, if that is not public, and with enough time and bytes for an image.
        directory: Where images are saved; made if it is not there.

    Raises:
        UsageError: The URL is none.
    """

    def __init__(self, url: str, client: Client, directory: Path):
        parse_url(url)
        self.url, self.client, self.directory = url, client, directory

    def __call__(self, description: str) -> Path:
        """The file of an image.

        Raises:
            ToolFailure: The endpoint cannot be asked, or its answer is not a PNG file.
        """
        if not description.strip() or len(description) > MAX_PROMPT:
            raise ToolFailure(f"a description has 1 to {MAX_PROMPT} characters, found {len(description.strip())}")
        body = json.dumps({"prompt": description}, ensure_ascii=False).encode(errors="replace")
        image = self.client.post(self.url, body, "application/json").body
        if not (image.startswith(_SIGNATURE) and image.endswith(_END)):
            raise ToolFailure("the answer of the image endpoint is not a PNG file")
        path = self.directory / f"{hashlib.sha256(image).hexdigest()[:16]}.png"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_content(path, image)
        except OSError as error:
            raise ToolFailure(f"cannot save the image: {error}") from None
        return path
