"""What the solver reads, and how it writes. That it is right is `tests/acceptance/test_calculator_and_solver_are_safe_and_right.py`."""

from __future__ import annotations

from fractions import Fraction

import pytest

from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.solver import Solution, is_solution, read_system, solve, write_decimal


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        *(("6x=30", "x = 5"), ("4x=72;x", "x = 18"), ("x/4=(120-x)/5", "x = 160/3"), ("x + y = 3, 2x + 4y = 4", "x = 4\ny = -1")),
        *(("x+1.5x=4500", "x = 1800.00000000000"), ("(3/5)*(x-2)=(27-x)/2", "x = 13.3636363636364"), ("12x = 3*21x", "x = 0")),
        *(("2t + 6t + t = 1, t", "t = 1/9"), ("x+2x=180/1;", "x = 60.0000000000000"), ("x+14=(37-x)*0.25", "x = -3.80000000000000")),
        *(
            ("x＋y＝5；x－y＝1", "x = 3\ny = 2"),
            ("{x+y=5, x==4}", "x = 4\ny = 1"),
            ("长+宽=10\n长-宽=2", "宽 = 4\n长 = 6"),
            ("a+b=3;a=1;b", "b = 2"),
        ),
        *(("e=3", "e = 3"), ("e+x=3;e=1", "e = 1\nx = 2"), ("x=50%*8", "x = 4.00000000000000"), ("x=3!", "x = 6"), ("y=2(3)", "y = 6")),
    ],
)
def test_linear_systems(text: str, lines: str) -> None:
    assert solve(text) == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("6^2 + b^2 = 10^2", "b_0 = -8\nb_1 = 8"),
        ("3x*4x=180", "x_0 = -sqrt(15)\nx_1 = sqrt(15)"),
        ("x*2x*4x=64", "x_0 = 2\nx_1 = -1 - sqrt(3)*I\nx_2 = -1 + sqrt(3)*I"),
        ("x+y=7;xy=12", "x_0 = 3\ny_0 = 4\nx_1 = 4\ny_1 = 3"),
        ("e^x=3", "x = 1.09861228866811"),
        ("24*pi = 2*pi*r", "r = 12.0000000000000"),
        ("a=6;b=8;c=sqrt(a^2+b^2);c", "c = 10"),
    ],
)
def test_other_systems(text: str, lines: str) -> None:
    assert solve(text) == lines


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "3x+280",
            "1=1",
            "x<3",
            "x>=3",
            "x+y=25",
            "x=1;x=2",
            "0x=0",
            "y=1/5x",
            "f(x)=3",
            "det(x)=1",
            "x=1=1",
            "x^25=1",
            "2^(9^99)=x",
        ),
        *(
            "x%2=1",
            "x!=6",
            ";".join(f"a{number}=1" for number in range(13)),
            "x=" + "9" * 200,
            "x" + "*(2^500)" * 100 + "=1",
            "x=1/0",
            "x^(1/99)=2",
        ),
    ],
)
def test_what_cannot_be_solved_is_refused_without_a_process(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    with pytest.raises(ToolFailure):
        solve(text)


def test_a_wrong_solution_is_not_returned() -> None:
    system = read_system("x+y=3;x-y=1")
    right = {"x": Fraction(2), "y": Fraction(1)}
    assert is_solution(system, Solution({}, right))
    assert not is_solution(system, Solution({}, right | {"x": Fraction(2) + Fraction(1, 10**30)}))
    square = read_system("x^2=2")
    digits = "1.41421356237309504880168872420969807856967187537694"
    assert is_solution(square, Solution({}, {"x": (digits, "0")}))
    assert not is_solution(square, Solution({}, {"x": (digits[:20], "0")}))
    assert not is_solution(square, Solution({}, {"x": ("0", digits)}))
    assert not is_solution(read_system("ln(x)=5"), Solution({}, {"x": ("0", "0")}))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-80.0, "-80.0000000000000"), (1e20, "1.00000000000000e+20"), (1e-5, "1.00000000000000e-5")]
)
def test_decimals_have_fifteen_digits(value: float, text: str) -> None:
    assert write_decimal(value) == text
