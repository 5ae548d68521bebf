"""What a runner does not support is refused by the field's name before the engine is asked."""

import msgspec
import pytest

from chatsvc.chat.sampling import check_supported
from chatsvc.chat.types import SamplingRequest
from chatsvc.engine.protocol import Grammar
from chatsvc.engine.runners.openvino.pipeline import UNSUPPORTED
from chatsvc.errors import InvalidRequest
from tests.engine.filemodel import make_card

ASKED = {
    "logit_bias": SamplingRequest(logit_bias={5: 1.0}),
    "logprobs": SamplingRequest(num_logprobs=0),
    "response_format": SamplingRequest(grammar=Grammar("json_schema", "{}")),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_the_runner_does_not_support_is_refused_by_name(name: str) -> None:
    card = msgspec.structs.replace(make_card(), runner="openvino", unsupported=UNSUPPORTED)
    check_supported(SamplingRequest(), card, 100)
    check_supported(ASKED[name], make_card(), 100)
    with pytest.raises(InvalidRequest) as caught:
        check_supported(ASKED[name], card, 100)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
