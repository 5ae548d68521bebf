"""``response_format`` from the wire to the embedded model and back: what is answered parses and obeys the schema."""

from __future__ import annotations

import json

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = pytest.mark.engine

URL = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "inhabitants": {"type": "integer", "minimum": 1, "maximum": 99999999},
        "continent": {"enum": ["Africa", "America", "Asia", "Australia", "Europe"]},
    },
    "required": ["name", "inhabitants", "continent"],
    "additionalProperties": False,
}


def formatted(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.fixture
def post(client, login):
    headers = login("alice", at=client)

    def post(**fields):
        messages = [{"role": "user", "content": "Describe the city of Paris in JSON."}]
        return client.post(URL, json={"messages": messages, "max_tokens": 150, **fields}, headers=headers)

    return post


def test_an_answer_obeys_its_schema_whole_and_streamed(post, events):
    for seed, strict in ((1, {"strict": True}), (2, {})):
        fields = {"response_format": formatted(CITY, **strict), "temperature": 1.2, "seed": seed}
        choice = post(**fields).get_json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert jsonschema_rs.is_valid(CITY, json.loads(choice["message"]["content"]))
        chunks = [data for _, data in events(post(stream=True, **fields).data) if data != "[DONE]"]
        pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert "".join(pieces) == choice["message"]["content"]


def test_several_choices_and_a_plain_request_beside_them(post):
    answer = post(response_format=formatted(CITY), n=3, seed=5, temperature=1.0).get_json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert all(jsonschema_rs.is_valid(CITY, json.loads(text)) for text in texts)
    plain = post(temperature=0, max_tokens=12).get_json()["choices"][0]["message"]["content"]
    assert (
        post(temperature=0, max_tokens=12, response_format={"type": "text"}).get_json()["choices"][0]["message"][
            "content"
        ]
        == plain
    )


def test_json_object_is_an_object(post):
    choice = post(response_format={"type": "json_object"}, temperature=0, max_tokens=300).get_json()["choices"][0]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "string", "pattern": "^a(?=b)"}, "regex parse error"),
        ({"type": "object", "properties": {f"{number}": True for number in range(1800)}}, "too big"),
    ],
)
def test_a_schema_that_cannot_be_obeyed_is_400_before_a_stream_begins(post, stream, schema, named):
    answer = post(response_format=formatted(schema), stream=stream)
    assert answer.status_code == 400, answer.text
    error = answer.get_json()["error"]
    assert error["param"] == "response_format"
    assert named in error["message"]


class City(BaseModel):
    """What OpenAI's client makes a schema of."""

    name: str = Field(max_length=20)
    is_capital: bool
    districts: list[str] = Field(max_length=2)


def test_openais_client_parses_its_own_class(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    parsed = client.chat.completions.parse(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Describe the city of Paris."}],
        response_format=City,
        max_tokens=400,
        temperature=0,
    )
    city = parsed.choices[0].message.parsed
    assert isinstance(city, City)
    assert len(city.districts) <= 2
