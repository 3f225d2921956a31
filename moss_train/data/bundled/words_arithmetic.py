"""The words and sentence patterns of the bundled dialogues, part arithmetic: data only.

A *wording* is a pair (what the human says, what MOSS replies); a reply goes with its wording, so that a question has one best answer.
Languages are `en` and `zh` everywhere. Placeholders: `{a}` and `{b}` are operands, `{r}` is the result, `{e}` an expression or equation.
"""

from __future__ import annotations

Wordings = list[tuple[str, str]]
ByLanguage = dict[str, Wordings]

ARITHMETIC: dict[str, ByLanguage] = {
    "+": {
        "en": [
            ("What is {a}+{b}?", "{a}+{b} = {r}."),
            ("What is {a} plus {b}?", "{a} plus {b} is {r}."),
            ("Add {a} and {b}.", "The sum of {a} and {b} is {r}."),
            ("How much is {a} plus {b}?", "{a} plus {b} is {r}."),
            ("Tom has {a} apples and gets {b} more. How many apples does he have now?", "He has {r} apples now."),
        ],
        "zh": [
            ("{a}加{b}等于多少？", "{a}加{b}等于{r}。"),
            ("请问{a}+{b}是多少？", "{a}+{b}={r}。"),
            ("计算{a}+{b}。", "{a}+{b}={r}。"),
            ("{a}与{b}的和是多少？", "{a}与{b}的和是{r}。"),
            ("小明有{a}个苹果，又买了{b}个，现在一共有多少个苹果？", "现在一共有{r}个苹果。"),
        ],
    },
    "-": {
        "en": [
            ("What is {a}-{b}?", "{a}-{b} = {r}."),
            ("What is {a} minus {b}?", "{a} minus {b} is {r}."),
            ("Subtract {b} from {a}.", "{a} minus {b} is {r}."),
            ("How much is {a} minus {b}?", "{a} minus {b} is {r}."),
            ("There are {a} birds in a tree and {b} fly away. How many birds are left?", "The number of birds left is {r}."),
        ],
        "zh": [
            ("{a}减{b}等于多少？", "{a}减{b}等于{r}。"),
            ("请问{a}-{b}是多少？", "{a}-{b}={r}。"),
            ("计算{a}-{b}。", "{a}-{b}={r}。"),
            ("{a}与{b}的差是多少？", "{a}与{b}的差是{r}。"),
            ("树上有{a}只鸟，飞走了{b}只，还剩多少只鸟？", "还剩{r}只鸟。"),
        ],
    },
    "*": {
        "en": [
            ("What is {a}*{b}?", "{a}*{b} = {r}."),
            ("What is {a} times {b}?", "{a} times {b} is {r}."),
            ("Multiply {a} by {b}.", "The product of {a} and {b} is {r}."),
            ("How much is {a} times {b}?", "{a} times {b} is {r}."),
            ("There are {a} boxes with {b} pens each. How many pens are there?", "There are {r} pens."),
        ],
        "zh": [
            ("{a}乘以{b}等于多少？", "{a}乘以{b}等于{r}。"),
            ("请问{a}×{b}是多少？", "{a}×{b}={r}。"),
            ("计算{a}*{b}。", "{a}*{b}={r}。"),
            ("{a}与{b}的积是多少？", "{a}与{b}的积是{r}。"),
            ("有{a}个盒子，每个盒子里有{b}支笔，一共有多少支笔？", "一共有{r}支笔。"),
        ],
    },
    "/": {
        "en": [
            ("What is {a}/{b}?", "{a}/{b} = {r}."),
            ("What is {a} divided by {b}?", "{a} divided by {b} is {r}."),
            ("Divide {a} by {b}.", "{a} divided by {b} is {r}."),
            ("How much is {a} divided by {b}?", "{a} divided by {b} is {r}."),
            ("{a} sweets are shared equally by {b} children. How many sweets does each child get?", "Each child gets {r} sweets."),
        ],
        "zh": [
            ("{a}除以{b}等于多少？", "{a}除以{b}等于{r}。"),
            ("请问{a}÷{b}是多少？", "{a}÷{b}={r}。"),
            ("计算{a}/{b}。", "{a}/{b}={r}。"),
            ("{a}除以{b}的商是多少？", "{a}除以{b}的商是{r}。"),
            ("把{a}颗糖平均分给{b}个孩子，每个孩子分到多少颗糖？", "每个孩子分到{r}颗糖。"),
        ],
    },
}
# The questions and their common reply; {a} is the result of the turn before.
ARITHMETIC_FOLLOW_UPS: dict[str, dict[str, tuple[list[str], str]]] = {
    "+": {
        "en": (["And plus {b}?", "Now add {b}.", "Add {b} to that."], "{a} plus {b} is {r}."),
        "zh": (["再加{b}呢？", "再加上{b}是多少？", "这个数加{b}呢？"], "{a}加{b}等于{r}。"),
    },
    "-": {
        "en": (["And minus {b}?", "Now subtract {b}.", "Subtract {b} from that."], "{a} minus {b} is {r}."),
        "zh": (["再减{b}呢？", "再减去{b}是多少？", "这个数减{b}呢？"], "{a}减{b}等于{r}。"),
    },
    "*": {
        "en": (["And times {b}?", "Now multiply it by {b}.", "Multiply that by {b}."], "{a} times {b} is {r}."),
        "zh": (["再乘以{b}呢？", "再乘{b}是多少？", "这个数乘以{b}呢？"], "{a}乘以{b}等于{r}。"),
    },
}
EXPRESSIONS: ByLanguage = {
    "en": [("Calculate {e}.", "{e} = {r}."), ("What is the value of {e}?", "The value of {e} is {r}."), ("Work out {e}.", "{e} = {r}.")],
    "zh": [("计算{e}的值。", "{e}的值是{r}。"), ("{e}等于多少？", "{e}={r}。"), ("请算一下{e}。", "{e}={r}。")],
}
# {p} and {q} are the values of {a} and {b}, {r} the larger one. Two calls in one turn.
COMPARISONS: ByLanguage = {
    "en": [("Which is larger, {a} or {b}?", "{a} = {p} and {b} = {q}, so the larger value is {r}.")],
    "zh": [("{a}和{b}哪个更大？", "{a}={p}，{b}={q}，更大的值是{r}。")],
}
EQUATIONS: ByLanguage = {
    "en": [
        ("Solve the equation {e}.", "The solution is x = {r}."),
        ("What is x if {e}?", "If {e}, then x = {r}."),
        ("Find x such that {e}.", "The solution is x = {r}."),
    ],
    "zh": [("解方程{e}。", "方程的解是x={r}。"), ("已知{e}，求x的值。", "x的值是{r}。"), ("如果{e}，那么x等于多少？", "x等于{r}。")],
}
# {a} is the sum, {b} the difference.
PAIRS: dict[str, ByLanguage] = {
    "larger": {
        "en": [("The sum of two numbers is {a} and their difference is {b}. What is the larger number?", "The larger number is {r}.")],
        "zh": [("两个数的和是{a}，差是{b}，较大的数是多少？", "较大的数是{r}。")],
    },
    "smaller": {
        "en": [("The sum of two numbers is {a} and their difference is {b}. What is the smaller number?", "The smaller number is {r}.")],
        "zh": [("两个数的和是{a}，差是{b}，较小的数是多少？", "较小的数是{r}。")],
    },
}
