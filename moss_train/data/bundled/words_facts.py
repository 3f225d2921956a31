"""The words and sentence patterns of the bundled dialogues, part facts: data only.

Wordings are as in `words_arithmetic.py`. Placeholders: `{s}` is the subject of a fact, `{f}` the fact itself, `{u}` a unit, `{p}` a plural,
`{n}` a number of things and `{r}` the number of units that they have.
"""

from __future__ import annotations

from moss_train.data.bundled.words_arithmetic import ByLanguage

# fmt: off
# kind -> rows (English subject, English answer, Chinese subject, Chinese answer).
FACTS: dict[str, list[tuple[str, str, str, str]]] = {
    "capital": [
        ("France", "Paris", "法国", "巴黎"), ("Japan", "Tokyo", "日本", "东京"), ("Italy", "Rome", "意大利", "罗马"),
        ("China", "Beijing", "中国", "北京"), ("Germany", "Berlin", "德国", "柏林"), ("Spain", "Madrid", "西班牙", "马德里"),
        ("Russia", "Moscow", "俄罗斯", "莫斯科"), ("Egypt", "Cairo", "埃及", "开罗"), ("Greece", "Athens", "希腊", "雅典"),
        ("the United Kingdom", "London", "英国", "伦敦"),
    ],
    "color": [
        ("snow", "white", "雪", "白色"), ("grass", "green", "草", "绿色"), ("the clear sky", "blue", "晴朗的天空", "蓝色"),
        ("coal", "black", "煤炭", "黑色"), ("a ripe banana", "yellow", "成熟的香蕉", "黄色"), ("blood", "red", "血", "红色"),
        ("a carrot", "orange", "胡萝卜", "橙色"), ("an elephant", "gray", "大象", "灰色"),
    ],
    "month": [
        ("January", "February", "一月", "二月"), ("February", "March", "二月", "三月"), ("March", "April", "三月", "四月"),
        ("April", "May", "四月", "五月"), ("May", "June", "五月", "六月"), ("June", "July", "六月", "七月"),
        ("July", "August", "七月", "八月"), ("August", "September", "八月", "九月"), ("September", "October", "九月", "十月"),
        ("October", "November", "十月", "十一月"), ("November", "December", "十一月", "十二月"), ("December", "January", "十二月", "一月"),
    ],
    "sound": [
        ("meow", "cat", "喵喵", "猫"), ("woof", "dog", "汪汪", "狗"), ("moo", "cow", "哞哞", "牛"),
        ("baa", "sheep", "咩咩", "羊"), ("quack", "duck", "嘎嘎", "鸭子"), ("ribbit", "frog", "呱呱", "青蛙"),
    ],
    "opposite": [
        ("hot", "cold", "热", "冷"), ("big", "small", "大", "小"), ("long", "short", "长", "短"), ("high", "low", "高", "低"),
        ("fast", "slow", "快", "慢"), ("new", "old", "新", "旧"), ("early", "late", "早", "晚"), ("left", "right", "左", "右"),
    ],
    "translation": [
        ("water", "水", "水", "water"), ("book", "书", "书", "book"), ("apple", "苹果", "苹果", "apple"), ("moon", "月亮", "月亮", "moon"),
        ("sun", "太阳", "太阳", "sun"), ("school", "学校", "学校", "school"), ("friend", "朋友", "朋友", "friend"),
        ("mountain", "山", "山", "mountain"), ("river", "河", "河", "river"), ("flower", "花", "花", "flower"),
    ],
    "author": [
        ("Hamlet", "William Shakespeare", "《哈姆雷特》", "莎士比亚"), ("Faust", "Goethe", "《浮士德》", "歌德"),
        ("Dream of the Red Chamber", "Cao Xueqin", "《红楼梦》", "曹雪芹"), ("War and Peace", "Leo Tolstoy", "《战争与和平》", "托尔斯泰"),
        ("Don Quixote", "Cervantes", "《堂吉诃德》", "塞万提斯"), ("Emma", "Jane Austen", "《爱玛》", "简·奥斯汀"),
    ],
}
# (number, English unit, thing, plural, Chinese thing and unit with their measure words).
COUNTS: list[tuple[int, str, str, str, str, str]] = [
    (8, "legs", "a spider", "spiders", "只蜘蛛", "条腿"), (7, "days", "a week", "weeks", "个星期", "天"),
    (12, "months", "a year", "years", "年", "个月"), (24, "hours", "a day", "days", "天", "个小时"),
    (60, "minutes", "an hour", "hours", "个小时", "分钟"), (88, "keys", "a piano", "pianos", "架钢琴", "个琴键"),
]
# fmt: on
COUNT_FOLLOW_UPS: ByLanguage = {
    "en": [("How many {u} do {n} {p} have?", "{n} {p} have {r} {u}."), ("And {n} {p}?", "{n} {p} have {r} {u}.")],
    "zh": [("{n}{s}有多少{u}？", "{n}{s}有{r}{u}。"), ("那{n}{s}呢？", "{n}{s}有{r}{u}。")],
}
FACT_WORDINGS: dict[str, ByLanguage] = {
    "capital": {
        "en": [
            ("What is the capital of {s}?", "The capital of {s} is {f}."),
            ("Which city is the capital of {s}?", "{f} is the capital of {s}."),
            ("Tell me the capital of {s}.", "The capital of {s} is {f}."),
            ("Do you know the capital of {s}?", "Yes, the capital of {s} is {f}."),
            ("Name the capital city of {s}.", "The capital city of {s} is {f}."),
        ],
        "zh": [
            ("{s}的首都是哪里？", "{s}的首都是{f}。"),
            ("哪座城市是{s}的首都？", "{f}是{s}的首都。"),
            ("告诉我{s}的首都是哪座城市。", "{s}的首都是{f}。"),
            ("你知道{s}的首都吗？", "知道，{s}的首都是{f}。"),
            ("请问{s}的首都叫什么？", "{s}的首都叫{f}。"),
        ],
    },
    "color": {
        "en": [
            ("What color is {s}?", "{s} is {f}."),
            ("What is the color of {s}?", "The color of {s} is {f}."),
            ("Tell me the color of {s}.", "The color of {s} is {f}."),
            ("Do you know what color {s} is?", "Yes, {s} is {f}."),
            ("Name the color of {s}.", "The color of {s} is {f}."),
        ],
        "zh": [
            ("{s}是什么颜色的？", "{s}是{f}的。"),
            ("{s}的颜色是什么？", "{s}的颜色是{f}。"),
            ("告诉我{s}的颜色。", "{s}的颜色是{f}。"),
            ("你知道{s}是什么颜色吗？", "知道，{s}是{f}的。"),
            ("请问{s}一般是什么颜色？", "{s}一般是{f}的。"),
        ],
    },
    "month": {
        "en": [
            ("Which month comes after {s}?", "{f} comes after {s}."),
            ("What is the next month after {s}?", "The next month after {s} is {f}."),
            ("Tell me the month that follows {s}.", "The month that follows {s} is {f}."),
            ("Do you know which month comes right after {s}?", "Yes, {f} comes right after {s}."),
            ("Name the month after {s}.", "The month after {s} is {f}."),
        ],
        "zh": [
            ("{s}之后是哪个月？", "{s}之后是{f}。"),
            ("{s}的下一个月是什么？", "{s}的下一个月是{f}。"),
            ("告诉我{s}的后面是哪个月。", "{s}的后面是{f}。"),
            ("你知道{s}过后是几月吗？", "知道，{s}过后是{f}。"),
            ("请问哪个月紧跟在{s}后面？", "紧跟在{s}后面的是{f}。"),
        ],
    },
    "sound": {
        "en": [
            ("Which animal says {s}?", "The {f} says {s}."),
            ("What animal makes the sound {s}?", "The {f} makes the sound {s}."),
            ("Tell me which animal says {s}.", "The {f} says {s}."),
            ("Do you know what animal says {s}?", "Yes, the {f} says {s}."),
            ("Name the animal that says {s}.", "The animal that says {s} is the {f}."),
        ],
        "zh": [
            ("什么动物{s}叫？", "{f}{s}叫。"),
            ("哪种动物的叫声是{s}？", "{f}的叫声是{s}。"),
            ("告诉我哪种动物会{s}叫。", "会{s}叫的是{f}。"),
            ("你知道什么动物会{s}叫吗？", "知道，{f}会{s}叫。"),
            ("请问{s}叫的是什么动物？", "{s}叫的是{f}。"),
        ],
    },
    "opposite": {
        "en": [
            ("What is the opposite of {s}?", "The opposite of {s} is {f}."),
            ("Which word is the opposite of {s}?", "The opposite of {s} is {f}."),
            ("Tell me the opposite of {s}.", "The opposite of {s} is {f}."),
            ("Do you know the opposite of the word {s}?", "Yes, the opposite of {s} is {f}."),
            ("Give me a word that means the opposite of {s}.", "{f} means the opposite of {s}."),
        ],
        "zh": [
            ("“{s}”的反义词是什么？", "“{s}”的反义词是“{f}”。"),
            ("哪个字和“{s}”的意思相反？", "“{f}”和“{s}”的意思相反。"),
            ("告诉我“{s}”的反义词。", "“{s}”的反义词是“{f}”。"),
            ("你知道“{s}”的反义词吗？", "知道，“{s}”的反义词是“{f}”。"),
            ("请说出“{s}”的反义词。", "“{s}”的反义词是“{f}”。"),
        ],
    },
    "translation": {
        "en": [
            ("How do you say {s} in Chinese?", "The Chinese word for {s} is {f}."),
            ("What is the Chinese word for {s}?", "The Chinese word for {s} is {f}."),
            ("Translate {s} into Chinese.", "{s} is {f} in Chinese."),
            ("Do you know the Chinese word for {s}?", "Yes, the Chinese word for {s} is {f}."),
            ("Tell me what {s} is in Chinese.", "{s} is {f} in Chinese."),
        ],
        "zh": [
            ("“{s}”用英语怎么说？", "“{s}”用英语说是{f}。"),
            ("“{s}”的英文是什么？", "“{s}”的英文是{f}。"),
            ("把“{s}”翻译成英语。", "“{s}”翻译成英语是{f}。"),
            ("你知道“{s}”的英语单词吗？", "知道，“{s}”的英语单词是{f}。"),
            ("告诉我“{s}”的英文单词。", "“{s}”的英文单词是{f}。"),
        ],
    },
    "count": {
        "en": [
            ("How many {u} does {s} have?", "{s} has {f} {u}."),
            ("What is the number of {u} that {s} has?", "{s} has {f} {u}."),
            ("Tell me how many {u} {s} has.", "{s} has {f} {u}."),
            ("Do you know how many {u} {s} has?", "Yes, {s} has {f} {u}."),
            ("I want to know how many {u} {s} has.", "{s} has {f} {u}."),
        ],
        "zh": [
            ("一{s}有多少{u}？", "一{s}有{f}{u}。"),
            ("请问一{s}有多少{u}？", "一{s}有{f}{u}。"),
            ("告诉我一{s}有多少{u}。", "一{s}有{f}{u}。"),
            ("你知道一{s}有多少{u}吗？", "知道，一{s}有{f}{u}。"),
            ("一{s}一共有多少{u}？", "一{s}一共有{f}{u}。"),
        ],
    },
    "author": {
        "en": [
            ("Who wrote {s}?", "{s} was written by {f}."),
            ("Who is the author of {s}?", "The author of {s} is {f}."),
            ("Tell me who wrote {s}.", "{f} wrote {s}."),
            ("Do you know the author of {s}?", "Yes, the author of {s} is {f}."),
            ("Which writer wrote {s}?", "{f} wrote {s}."),
        ],
        "zh": [
            ("{s}是谁写的？", "{s}是{f}写的。"),
            ("{s}的作者是谁？", "{s}的作者是{f}。"),
            ("告诉我{s}的作者。", "{s}的作者是{f}。"),
            ("你知道谁写了{s}吗？", "知道，{f}写了{s}。"),
            ("请问哪位作家写了{s}？", "{f}写了{s}。"),
        ],
    },
}
# Followed by the first reply of FACT_WORDINGS for the same kind.
FACT_FOLLOW_UPS = {"en": ["What about {s}?", "And {s}?", "How about {s}?"], "zh": ["那{s}呢？", "{s}呢？", "那么{s}呢？"]}
QUOTED_KINDS = {"opposite", "translation"}  # the Chinese subject of these is a word, in quotation marks
# kind -> how it is searched for, and what pages say about it.
SEARCHES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "capital": {
        "en": ("capital of {s}", ["{f} is the capital city of {s}.", "Travel guide: {f}, the capital of {s}."]),
        "zh": ("{s} 首都", ["{f}是{s}的首都。", "旅游指南：{s}首都{f}。"]),
    },
    "count": {
        "en": ("how many {u} {s} has", ["{s} has {f} {u}.", "Facts for children: {s}, {f} {u}."]),
        "zh": ("一{s}有多少{u}", ["一{s}有{f}{u}。", "小百科：一{s}，{f}{u}。"]),
    },
    "author": {
        "en": ("author of {s}", ["{s} was written by {f}.", "{f}, the author of {s}."]),
        "zh": ("{s} 作者", ["{s}的作者是{f}。", "作家{f}，代表作{s}。"]),
    },
}
