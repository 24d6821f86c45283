from __future__ import annotations

from pathlib import Path

import pytest

from eval.features.tokens import flag, one_of, parse_token, positive
from kornia_hardnet8.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name", "weights", "options"),
    [
        ("h8E512", "h8E512", None, {}),
        ("hardtfeat@dir/HardTFeat.pth", "hardtfeat", "dir/HardTFeat.pth", {}),
        ("h8E512@run/best.ckpt:dim=512", "h8E512", "run/best.ckpt", {"dim": "512"}),
        ("h8E512:untrained=true,dim=64", "h8E512", None, {"untrained": "true", "dim": "64"}),
        ("h8@C:dir/w.pth", "h8", "C:dir/w.pth", {}),
        ("h8@a:b/w.pth:dim=3", "h8", "a:b/w.pth", {"dim": "3"}),
        ("h8@name@2.pth", "h8", "name@2.pth", {}),
        ("kornia-hardnet8", "kornia-hardnet8", None, {}),
    ],
)
def test_parts_of_a_token(text: str, name: str, weights: str | None, options: dict[str, str]) -> None:
    token = parse_token(text)
    assert (token.text, token.name, token.options) == (text, name, options)
    assert token.weights == (None if weights is None else Path(weights))


@pytest.mark.parametrize("text", ["", "@w", "h8@", "h8:", "h8:dim", "h8:dim=", "a b", "h8:dim=1,dim=2", "h8:=3"])
def test_malformed_tokens_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="descriptor"):
        parse_token(text)


def test_options_are_converted_and_checked() -> None:
    token = parse_token("x:dim=12,untrained=False,kind=b")
    known = {"dim": positive, "untrained": flag, "kind": one_of("a", "b")}
    assert token.typed_options(known) == {"dim": 12, "untrained": False, "kind": "b"}
    with pytest.raises(UsageError, match=r"x has no option 'kind'.*untrained"):
        token.typed_options({"dim": positive, "untrained": flag})
    for text in ("x:dim=0", "x:dim=-1", "x:dim=a", "x:untrained=yes", "x:kind=c"):
        with pytest.raises(UsageError, match="does not work"):
            parse_token(text).typed_options(known)
