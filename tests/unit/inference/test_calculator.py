"""What the calculator reads, and how it writes."""

from __future__ import annotations

import pytest

from moss_train.inference.tools.calculator import calculate
from moss_train.inference.tools.failure import ToolFailure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # As in the published results: a division makes a decimal, whole numbers stay whole.
        *(
            ("5*3*5", "75"),
            ("1200*0.8", "960.0"),
            ("42/7/3+1", "3.0"),
            ("10^16", "10000000000000000"),
            ("0b01101000", "104"),
            ("7**3", "343"),
        ),
        *(("pi*3^2*20", "565.4866776461628"), ("sqrt(100)", "10.0"), ("0.5*8*15*sin(30)", "-59.28189744557171"), ("30 // 1^2", "30")),
        *(("floor((500-80-90-95)/110)+3", "5"), ("ceil(500/(80+90+95+110))", "2"), ("8^(1/3)", "2.0"), ("-7-35*4", "-147")),
        ("p=(1300+700+1100)/2;sqrt(p*(p-1300)*(p-700)*(p-1100))", "384991.88303131796"),
        # Exact where binary floating point is not.
        *(
            ("90/(1-0.95)", "1800.0"),
            ("4*6.5*0.9", "23.4"),
            ("0.1+0.2", "0.3"),
            ("125^(1/3)", "5.0"),
            ("1/3*3", "1.0"),
            ("27^(2/3)", "9.0"),
        ),
        *(("7!/(4!*(7-4)!)", "35.0"), ("2^-2", "0.25"), ("-2^2", "-4"), ("2^3^2", "512"), ("7%3", "1"), ("-7//2", "-4"), ("7.5//2", "3.0")),
        *(("3.0%-2.8%", "0.002"), ("5.9%-(-3.5%)", "0.094"), ("50%*80", "40.0"), ("10%", "0.1"), ("100*(1+5%)", "105.0")),
        *(
            ("2pi", "6.283185307179586"),
            ("3(4+5)", "27"),
            ("(2)(3)", "6"),
            ("2sqrt(16)", "8.0"),
            ("√16", "4.0"),
            ("2√9+1", "7.0"),
            ("3!", "6"),
        ),
        *(
            ("２×３", "6"),
            ("8÷２", "4.0"),
            ("（1＋2）＊3", "9"),
            ("3²+4²", "25"),
            ("2³", "8"),
            ("【1+2】*3", "9"),
            ("π", "3.141592653589793"),
        ),
        *(("sin(30°)", "0.49999999999999994"), ("lg(1000)", "3.0"), ("log(8,2)", "3.0"), ("ln(e)", "1.0"), ("cbrt(-8)", "-2.0")),
        *(("CubeRoot(12)^3", "12.0"), ("max(1,2.5)", "2.5"), ("min(3,2)", "2"), ("mean(1,2,4)", "2.3333333333333335"), ("gcd(12,18)", "6")),
        *(
            ("comb(5,2)", "10"),
            ("round(2.5)", "3"),
            ("round(-2.5)", "-3"),
            ("round(3.14159,2)", "3.14"),
            ("abs(-3)", "3"),
            ("pow(2,10)", "1024"),
        ),
        *(("3+4=", "7"), ("3+4=?", "7"), ("3+4 ＝ ？", "7"), ("5!=", "120"), ("1+1。", "2"), ("sqrt[4]", "2.0"), ("e=3;e+1", "4")),
        *(
            ("1e3", "1000.0"),
            (".5+5.", "5.5"),
            ("0xff", "255"),
            ("0", "0"),
            ("-0", "0"),
            ("1e-400*1e400", "1.0"),
            ("0^0", "1"),
            ("--3", "3"),
        ),
        ("1.0001^100000", "22015.456048527954"),
    ],
)
def test_values(text: str, value: str) -> None:
    found = calculate(text)
    assert found == value or float(found) == pytest.approx(float(value), rel=1e-13), found
    assert ("." in found or "e" in found) == ("." in value)


@pytest.mark.parametrize(
    "text",
    [
        # Two readings.
        *("1/2(3)", "6/2(1+2)", "1/2pi", "3!!", "3 4", "f(2)", "2^50%", "1;2", "007", "2022-09-01", "1,000*2"),
        # Names without a value, units, relations, words.
        *("x+1", "3 kg", "9亿", "1700>=1600", "1=1", "2*r=50", "x=;1", "yes", "None", "每天", "sin", "sqrt 4"),
    ],
)
def test_what_is_not_clear_has_no_result(text: str) -> None:
    with pytest.raises(ToolFailure):
        calculate(text)


def test_results_have_bounded_digits() -> None:
    assert len(calculate("2^3000")) == 904
    for text in ("2^3400", "999!", "10^1000"):
        with pytest.raises(ToolFailure):
            calculate(text)
    assert calculate("999!/998!") == "999.0"
