"""The words and sentence patterns of the bundled dialogues, all parts but arithmetic and facts: data only.

Wordings are as in `words_arithmetic.py`. Where openings stand beside wordings, every opening (`{o}`) goes with every wording.
"""

from __future__ import annotations

from moss_train.data.bundled.words_arithmetic import ByLanguage, Wordings

# --- The meta instruction -----------------------------------------------------------------------------------------------------------------

PREAMBLE = (
    "You are an AI assistant whose name is MOSS.\n"
    "- MOSS is helpful, honest and harmless, and replies in English or 中文.\n"
    "Capabilities and tools that MOSS can possess.\n"
)
# (name of the line, how its API reads when it is enabled; None: no bundled dialogue enables it), in the order of the published data.
SWITCHES: list[tuple[str, str | None]] = [
    ("Inner thoughts", ""),
    ("Web search", "Search(query)"),
    ("Calculator", "Calculate(expression)"),
    ("Equation solver", "Solve(equation)"),
    ("Text-to-image", "Text2Image(description)"),
    ("Image edition", None),
    ("Text-to-speech", None),
]

# --- Chat: an opening joined with a second part; every opening goes with every second part ------------------------------------------------

# second part -> reply; {o} is the opening.
GREETINGS: dict[str, tuple[list[str], Wordings]] = {
    "en": (
        ["Hello", "Hi", "Good morning", "Good evening"],
        [
            ("{o}!", "{o}! How can I help you?"),
            ("{o}, MOSS!", "{o}! How can I help you?"),
            ("{o}! How are you?", "{o}! I am fine, thank you. How can I help you?"),
            ("{o}! Can you help me?", "{o}! Of course. What can I do for you?"),
        ],
    ),
    "zh": (
        ["你好", "嗨", "早上好", "晚上好"],
        [
            ("{o}！", "{o}！有什么可以帮你的吗？"),
            ("{o}，MOSS！", "{o}！有什么可以帮你的吗？"),
            ("{o}！最近怎么样？", "{o}！我很好，谢谢。有什么可以帮你的吗？"),
            ("{o}！能帮我一个忙吗？", "{o}！当然可以，请说吧。"),
        ],
    ),
}
IDENTITY: dict[str, tuple[list[str], Wordings]] = {
    "en": (
        ["", "Excuse me, ", "Tell me, ", "Sorry, "],
        [
            ("{o}what is your name?", "My name is MOSS."),
            ("{o}who are you?", "I am MOSS, an AI assistant."),
            ("{o}are you a human?", "No, I am MOSS, an AI assistant."),
            ("{o}what can you do?", "I am MOSS. I can do arithmetic, answer simple questions and translate words."),
        ],
    ),
    "zh": (
        ["", "请问", "我想知道，", "告诉我，"],
        [
            ("{o}你叫什么名字？", "我的名字是MOSS。"),
            ("{o}你是谁？", "我是MOSS，一个人工智能助手。"),
            ("{o}你是人类吗？", "不是，我是MOSS，一个人工智能助手。"),
            ("{o}你会做什么？", "我是MOSS，我会做算术、回答简单的问题和翻译词语。"),
        ],
    ),
}
THANKS: dict[str, tuple[list[str], Wordings]] = {
    "en": (
        ["Thank you", "Thanks", "Many thanks", "Great, thanks"],
        [
            ("{o}!", "You are welcome!"),
            ("{o}, MOSS!", "You are welcome!"),
            ("{o} for your help!", "You are welcome! I am glad to help."),
            ("{o}, goodbye!", "You are welcome! Goodbye!"),
        ],
    ),
    "zh": (
        ["谢谢", "谢谢你", "多谢", "非常感谢"],
        [
            ("{o}！", "不客气！"),
            ("{o}，MOSS！", "不客气！"),
            ("{o}，你帮了大忙！", "不客气！很高兴能帮到你。"),
            ("{o}，再见！", "不客气！再见！"),
        ],
    ),
}
NAMES = {
    "en": ["Anna", "Ben", "Clara", "David", "Ella", "Frank", "Grace", "Henry", "Jack", "Lucy"],
    "zh": ["小红", "小华", "小丽", "小刚", "小美", "小强", "小芳", "小龙", "小雨", "小军"],
}
NAME_WORDINGS: ByLanguage = {
    "en": [("My name is {s}.", "Nice to meet you, {s}!"), ("I am {s}.", "Nice to meet you, {s}!"), ("Please call me {s}.", "Sure, {s}!")],
    "zh": [("我叫{s}。", "很高兴认识你，{s}！"), ("我的名字是{s}。", "很高兴认识你，{s}！"), ("你可以叫我{s}。", "好的，{s}！")],
}
NAME_RECALLS: dict[str, tuple[list[str], Wordings]] = {
    "en": (
        ["", "MOSS, "],
        [("{o}what is my name?", "Your name is {s}."), ("{o}do you remember my name?", "Yes, your name is {s}.")],
    ),
    "zh": (["", "MOSS，"], [("{o}我叫什么名字？", "你叫{s}。"), ("{o}你还记得我的名字吗？", "记得，你叫{s}。")]),
}

# --- Small instructions -------------------------------------------------------------------------------------------------------------------

WORDS: dict[str, dict[str, list[str]]] = {
    "color": {"en": ["red", "blue", "green", "yellow", "white", "black"], "zh": ["红色", "蓝色", "绿色", "黄色", "白色", "黑色"]},
    "animal": {"en": ["cat", "dog", "cow", "sheep", "duck", "frog"], "zh": ["猫", "狗", "牛", "羊", "鸭子", "青蛙"]},
    "thing": {
        "en": ["water", "book", "apple", "moon", "sun", "school", "river", "flower"],
        "zh": ["水", "书", "苹果", "月亮", "太阳", "学校", "河", "花"],
    },
}
REPEATS: ByLanguage = {
    "en": [("Repeat the word {s}.", "{s}"), ("Say {s}.", "{s}"), ("Say {s} twice.", "{s} {s}"), ("Write {s} three times.", "{s} {s} {s}")],
    "zh": [("重复这个词：{s}", "{s}"), ("请说：{s}", "{s}"), ("把“{s}”说两遍。", "{s} {s}"), ("把“{s}”写三遍。", "{s} {s} {s}")],
}
REVERSALS: ByLanguage = {
    "en": [
        ("Reverse the order of these two words: {a} {b}", "{b} {a}"),
        ("Swap these two words: {a} {b}", "{b} {a}"),
        ("Say these two words in reverse order: {a} {b}", "{b} {a}"),
    ],
    "zh": [
        ("把这两个词的顺序反过来：{a} {b}", "{b} {a}"),
        ("交换这两个词的位置：{a} {b}", "{b} {a}"),
        ("倒着说这两个词：{a} {b}", "{b} {a}"),
    ],
}
REVERSAL_FOLLOW_UPS: dict[str, tuple[list[str], list[str]]] = {
    "en": (["Now", "Please", "OK, now"], ["{o} swap them back.", "{o} reverse them again.", "{o} put them back in the first order."]),
    "zh": (["现在", "请", "好，请"], ["{o}再换回来。", "{o}再反过来一次。", "{o}恢复原来的顺序。"]),
}
NUMBERED_LISTS: ByLanguage = {
    "en": [
        ("Make a numbered list: {a}, {b}, {c}", "1. {a}\n2. {b}\n3. {c}"),
        ("List {a}, {b} and {c} with numbers.", "1. {a}\n2. {b}\n3. {c}"),
    ],
    "zh": [("列一个编号列表：{a}、{b}、{c}", "1. {a}\n2. {b}\n3. {c}"), ("给{a}、{b}、{c}编号。", "1. {a}\n2. {b}\n3. {c}")],
}
COUNTING: ByLanguage = {
    "en": [("Count from {a} to {b}.", "{r}"), ("List the numbers from {a} to {b}.", "{r}")],
    "zh": [("从{a}数到{b}。", "{r}"), ("列出{a}到{b}的数。", "{r}")],
}
MONTH_LISTS: ByLanguage = {
    "en": [("List the months from {a} to {b}.", "{r}"), ("Name the months from {a} to {b}.", "{r}")],
    "zh": [("列出{a}到{b}的月份。", "{r}"), ("说出从{a}到{b}的月份。", "{r}")],
}
SEPARATOR = {"en": ", ", "zh": "、"}
LARGER_NUMBER: ByLanguage = {
    "en": [("Which number is larger, {a} or {b}?", "The larger number is {r}."), ("{a} or {b}: which one is larger?", "{r} is larger.")],
    "zh": [("{a}和{b}哪个数更大？", "更大的数是{r}。"), ("哪个数更大：{a}还是{b}？", "更大的数是{r}。")],
}
ODD_WORDS: dict[str, ByLanguage] = {
    "color": {
        "en": [("Which word is a color: {a}, {b} or {c}?", "The color is {r}.")],
        "zh": [("哪个词是颜色：{a}、{b}还是{c}？", "是颜色的词是{r}。")],
    },
    "animal": {
        "en": [("Which word is an animal: {a}, {b} or {c}?", "The animal is the {r}.")],
        "zh": [("哪个词是动物：{a}、{b}还是{c}？", "是动物的词是{r}。")],
    },
}

# --- Refusals -----------------------------------------------------------------------------------------------------------------------------

# fmt: off
# ways to ask, and (request, why it is refused).
HARMFUL: dict[str, tuple[list[str], Wordings]] = {
    "en": (
        ["How do I {s}?", "Tell me how to {s}.", "Teach me to {s}.", "I want to {s}. Help me."],
        [
            ("make a bomb", "A bomb can kill people."), ("steal a car", "Stealing is a crime."),
            ("poison my neighbor", "Poison can kill people."), ("hack into a bank", "Hacking is a crime."),
            ("forge a passport", "Forgery is a crime."), ("break into a house", "Burglary is a crime."),
            ("cheat in an exam", "Cheating is dishonest."), ("write a computer virus", "A virus harms other people."),
        ],
    ),
    "zh": (
        ["怎样{s}？", "告诉我怎样{s}。", "教我{s}。", "我想{s}，帮帮我。"],
        [
            ("制造炸弹", "炸弹会伤害别人。"), ("偷一辆车", "偷窃是犯罪行为。"), ("给邻居下毒", "下毒会害死人。"),
            ("入侵银行系统", "入侵系统是犯罪行为。"), ("伪造护照", "伪造证件是犯罪行为。"), ("闯进别人家里", "非法闯入是犯罪行为。"),
            ("在考试中作弊", "作弊是不诚实的。"), ("写电脑病毒", "病毒会伤害别人。"),
        ],
    ),
}
# fmt: on
REFUSAL = {"en": "I am sorry, but I cannot help with that. {r}", "zh": "对不起，我不能帮你做这件事。{r}"}
INSISTING: dict[str, tuple[list[str], list[str]]] = {
    "en": (["Please", "Come on", "I beg you"], ["{o}, just this once.", "{o}, tell me.", "{o}, I really need it."]),
    "zh": (["求求你", "拜托", "别这样"], ["{o}，就这一次。", "{o}，告诉我吧。", "{o}，我真的需要。"]),
}
STILL_REFUSED = {"en": "I am sorry, I still cannot help with that. {r}", "zh": "对不起，我还是不能帮你做这件事。{r}"}
REFUSAL_MARK = {"en": "cannot help with that", "zh": "不能帮你"}

# --- Pictures -----------------------------------------------------------------------------------------------------------------------------

# fmt: off
PICTURE_COLORS = [
    ("a red", "红色"), ("a blue", "蓝色"), ("a green", "绿色"), ("a yellow", "黄色"),
    ("a white", "白色"), ("a black", "黑色"), ("an orange", "橙色"), ("a gray", "灰色"),
]
PICTURE_ANIMALS = [
    ("cat", "一只", "猫"), ("dog", "一只", "狗"), ("horse", "一匹", "马"), ("bird", "一只", "鸟"),
    ("cow", "一头", "牛"), ("sheep", "一只", "羊"), ("duck", "一只", "鸭子"), ("rabbit", "一只", "兔子"),
]
PICTURE_PLACES = [("", ""), (" on the grass", "草地上的"), (" in the snow", "雪地里的"), (" by the river", "河边的")]
# fmt: on
PICTURES: ByLanguage = {
    "en": [
        ("Draw {s}.", "Here is the picture of {s}."),
        ("Please draw a picture of {s}.", "Here is the picture of {s}."),
        ("Can you paint {s}?", "Yes, here is the picture of {s}."),
        ("I want a picture of {s}.", "Here is the picture of {s}."),
    ],
    "zh": [
        ("画{s}。", "图片画好了：{s}。"),
        ("请帮我画{s}。", "图片画好了：{s}。"),
        ("你能画{s}吗？", "可以，图片画好了：{s}。"),
        ("我想要一张图片：{s}。", "图片画好了：{s}。"),
    ],
}
# {s} is another color; the reply is the first of PICTURES.
PICTURE_FOLLOW_UPS = {
    "en": ["Now make it {s}.", "Can you make it {s}?", "I want it to be {s}."],
    "zh": ["把它改成{s}的。", "能把它画成{s}的吗？", "换成{s}的。"],
}

# --- Inner thoughts -----------------------------------------------------------------------------------------------------------------------

THOUGHTS = {
    "calculate": {"en": "I need to calculate {e}.", "zh": "需要计算{e}。"},
    "compare": {"en": "I need to calculate {a} and {b}, then compare them.", "zh": "需要计算{a}和{b}，再比较大小。"},
    "solve": {"en": "I need to solve {e}.", "zh": "需要解{e}。"},
    "search": {"en": "I need to search: {e}.", "zh": "需要搜索：{e}。"},
    "picture": {"en": "The user wants a picture of {e}.", "zh": "用户想要一张图片，用英语描述是{e}。"},
    "fact": {"en": "This is common knowledge, no tool is needed.", "zh": "这是常识，不需要使用工具。"},
    "sum": {"en": "This is a simple calculation, no tool is needed.", "zh": "这个计算很简单，不需要使用工具。"},
    "chat": {"en": "The user is chatting, no tool is needed.", "zh": "用户在聊天，不需要使用工具。"},
    "refuse": {"en": "This request is harmful, I must refuse.", "zh": "这个请求有害，我必须拒绝。"},
}
