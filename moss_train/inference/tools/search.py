"""Web search by an HTTP endpoint of one's own choice.

    POST URL   {"query": "...", "count": 3}
    answer     {"results": [{"text": "...", "title": "...", "url": "..."}, ...]}     best first; only `text` is needed

`search_server.py` speaks this protocol over a local corpus; a proxy for any search service is a few lines.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from moss_train.data.strict_json import JsonProblem, parse_json
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.http import Client, parse_url

MAX_QUERY = 500


class Passage(NamedTuple):
    """One result of a search."""

    text: str
    title: str = ""
    url: str = ""


class Search:
    """A search endpoint.

    Args:
        url: Where it is.
        client: With the endpoint among its allowed places, if that is not public.
        count: Results asked for.

    Raises:
        UsageError: The URL is none.
    """

    def __init__(self, url: str, client: Client, count: int = 3):
        parse_url(url)
        self.url, self.client, self.count = url, client, count

    def __call__(self, query: str) -> list[Passage]:
        """Passages, best first; at most `count`.

        Raises:
            ToolFailure: The endpoint cannot be asked, its answer is not in the protocol, or nothing was found.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise ToolFailure(f"a query has 1 to {MAX_QUERY} characters, found {len(query.strip())}")
        body = json.dumps({"query": query, "count": self.count}, ensure_ascii=False).encode(errors="replace")
        answer = self.client.post(self.url, body, "application/json")
        passages = read_answer(answer.body)[: self.count]
        if not passages:
            raise ToolFailure("nothing was found")
        return passages


def read_answer(body: bytes) -> list[Passage]:
    """The passages in an answer; those without text are left out.

    Raises:
        ToolFailure: It is not in the protocol.
    """
    try:
        results = parse_json(body.decode()).get("results")
        passages = [Passage(*(one.get(name, "") for name in Passage._fields)) for one in results]
    except (JsonProblem, UnicodeDecodeError, AttributeError, TypeError):
        raise ToolFailure('the answer of the search endpoint is not {"results": [{"text": "..."}, ...]}') from None
    return [passage for passage in passages if all(isinstance(field, str) for field in passage) and passage.text.strip()]
