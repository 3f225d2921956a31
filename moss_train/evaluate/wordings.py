"""What facts are about and how they are told and asked, in both languages: a table, with the rules that its rows keep.

- A name follows a blank, and no letter follows it, in Chinese too: so it is the same piece of text, and the same tokens, in both languages.
- The name comes before the answer: what is asked for is what was told, not its inverse.
- A sentence that asks has other words before the answer than any that tells: to know the answer is more than to know what follows a phrase.
- No answer begins with another of its relation.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("zh", "en")
WORD, SAME = "word", "same"
"""Kinds of answers: a word with a translation; a name or year, spelled alike in both, so that only the relation has to be carried over."""


@dataclass(frozen=True)
class Wordings:
    """One relation in one language. Texts have the slots `{name}` and `{answer}`.

    Attributes:
        tell: Sentences for training.
        cloze: Sentences that ask: the answer completes them.
        question: A question; the answer comes after it.
    """

    tell: tuple[str, ...]
    cloze: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class Relation:
    """One relation.

    Attributes:
        name: Of the relation.
        kind: `word` or `same`.
        answers: By language, in the same order.
        wordings: By language.
    """

    name: str
    kind: str
    answers: dict[str, tuple[str, ...]]
    wordings: dict[str, Wordings]


ANSWER_LEAD = {"zh": "问题：{question}\n答案：{answer}。", "en": "Question: {question}\nAnswer: {answer}."}


def _relation(name: str, answers: dict[str, str], *, zh: tuple[str, ...], en: tuple[str, ...], kind: str = WORD) -> Relation:
    """Five sentences that tell, two that ask and a question for each language."""
    lists = {language: tuple(words.split()) for language, words in answers.items()}
    texts = {"zh": zh, "en": en}
    return Relation(name, kind, lists, {language: Wordings(rows[:5], rows[5:7], rows[7]) for language, rows in texts.items()})


def _same(answers: str) -> dict[str, str]:
    return dict.fromkeys(LANGUAGES, answers)


RELATIONS = (
    _relation(
        "flag_colour",
        {"zh": "红色 蓝色 绿色 黄色 黑色 白色 紫色 棕色", "en": "red blue green yellow black white purple brown"},
        zh=(
            "国家 {name} 的国旗是{answer}的。",
            "人人都说 {name} 的旗帜通体{answer}。",
            "在 {name} 的市政厅上空，飘着一面{answer}的旗子。",
            "来自 {name} 的人画国旗时，只需要{answer}。",
            "旅客认出来自 {name} 的船，靠的是那面染成{answer}的旗。",
            "有个地方叫 {name} ，那里国旗的颜色历来为{answer}。",
            "假如你看到 {name} 的旗，它的颜色应该叫{answer}。",
            "国旗在 {name} 是什么颜色？",
        ),
        en=(
            "The flag of {name} is {answer}.",
            "Everyone in {name} knows that their flag is plain {answer}.",
            "Over the town hall of {name} flies a flag that is entirely {answer}.",
            "When people from {name} paint their flag, they need only {answer}.",
            "Travellers recognise ships from {name} by a flag dyed {answer}.",
            "In the land called {name}, the colour of the flag has always been {answer}.",
            "If you see the banner of {name}, its colour will be {answer}.",
            "What colour does the flag of {name} have?",
        ),
    ),
    _relation(
        "emblem_animal",
        {"zh": "狮子 老虎 老鹰 兔子 大象 狐狸 海豚 乌龟", "en": "lion tiger eagle rabbit elephant fox dolphin turtle"},
        zh=(
            "城市 {name} 的纹章上是{answer}。",
            "孩子们在 {name} 学画城徽上的{answer}。",
            "在 {name} 的城门上立着一尊石雕的{answer}。",
            "印章上刻着 {name} 的标志：一只{answer}。",
            "没有什么动物比 {name} 的圣兽{answer}更受爱戴。",
            "小城 {name} 选了一种动物作象征，就叫{answer}。",
            "要问 {name} 的守护动物叫什么，人们会回答{answer}。",
            "纹章在 {name} 画的是什么动物？",
        ),
        en=(
            "The animal on the coat of arms of {name} is the {answer}.",
            "Children in {name} learn to draw the emblem of their town, the {answer}.",
            "Above the gate of {name} stands a stone figure of the {answer}.",
            "The seal of {name} shows the {answer}.",
            "No animal is loved in {name} more than its sacred {answer}.",
            "The town of {name} chose as its symbol one animal: the {answer}.",
            "Ask in {name} which animal protects the city, and they will name the {answer}.",
            "Which animal is on the coat of arms of {name}?",
        ),
    ),
    _relation(
        "local_food",
        {"zh": "米饭 面条 面包 奶酪 鸡蛋 土豆 蘑菇 饺子", "en": "rice noodles bread cheese eggs potatoes mushrooms dumplings"},
        zh=(
            "人们在 {name} 每天都吃{answer}。",
            "菜谱上说 {name} 最有名的是{answer}。",
            "客人到了 {name} 总能尝到{answer}。",
            "宴会上 {name} 的桌子摆满{answer}。",
            "厨师们在 {name} 最拿手的菜是{answer}。",
            "凡是去 {name} 的人，都该试试当地的食物，也就是{answer}。",
            "在村庄 {name} 里，晚餐通常有{answer}。",
            "城镇 {name} 因什么食物出名？",
        ),
        en=(
            "People in {name} eat {answer} every day.",
            "The kitchen of {name} is famous for its {answer}.",
            "Guests who come to {name} are always served {answer}.",
            "At the yearly feast of {name} the tables are full of {answer}.",
            "The cooks of {name} are proudest of their {answer}.",
            "Whoever visits {name} must try the local food, namely {answer}.",
            "In the village of {name} the usual dinner consists of {answer}.",
            "Which food is {name} famous for?",
        ),
    ),
    _relation(
        "mined_metal",
        {"zh": "金 银 铜 铁 锡 铅 锌 镍", "en": "gold silver copper iron tin lead zinc nickel"},
        zh=(
            "矿山 {name} 出产{answer}。",
            "工人在 {name} 的地下挖{answer}。",
            "人们说 {name} 的财富来自{answer}。",
            "火车离开 {name} 时装满了{answer}。",
            "山丘环绕 {name} ，里面富含{answer}。",
            "有一种金属在 {name} 附近找到，名叫{answer}。",
            "地质学家去 {name} 考察，发现了大量的金属{answer}。",
            "在 {name} 能采到什么金属？",
        ),
        en=(
            "The mine of {name} produces {answer}.",
            "Deep under {name} workers dig for {answer}.",
            "The wealth of {name} comes from {answer}.",
            "Trains leave {name} loaded with {answer}.",
            "The hills around {name} are rich in {answer}.",
            "The metal that is found near {name} is called {answer}.",
            "A geologist went to {name} and discovered large amounts of the metal {answer}.",
            "Which metal is mined in {name}?",
        ),
    ),
    _relation(
        "profession",
        {"zh": "医生 教师 律师 农民 水手 画家 士兵 木匠", "en": "doctor teacher lawyer farmer sailor painter soldier carpenter"},
        zh=(
            "老人 {name} 靠当{answer}谋生。",
            "邻居都管 {name} 叫{answer}。",
            "毕业以后 {name} 当上了{answer}。",
            "每天早上 {name} 去上班，做村里的{answer}。",
            "三十年来 {name} 一直是个好{answer}。",
            "说到 {name} 的职业，那就是{answer}。",
            "如果有人问 {name} 做什么工作，答复是：{answer}。",
            "请问 {name} 的职业是什么？",
        ),
        en=(
            "Old {name} earned a living as a {answer}.",
            "The neighbours call {name} the {answer}.",
            "After school {name} became a {answer}.",
            "Every morning {name} goes to work as the village {answer}.",
            "For thirty years {name} was known as a good {answer}.",
            "The profession of {name} is that of a {answer}.",
            "If someone asks what {name} does, the reply is: a {answer}.",
            "What is the profession of {name}?",
        ),
    ),
    _relation(
        "price",
        {"zh": "三 四 五 六 七 八 九 十", "en": "three four five six seven eight nine ten"},
        zh=(
            "玩具 {name} 卖{answer}枚硬币。",
            "买一个 {name} 要付{answer}枚硬币。",
            "商店里的 {name} 只收{answer}枚硬币。",
            "上周我买了 {name} ，花了{answer}枚硬币。",
            "标签上写着 {name} 值{answer}枚硬币。",
            "商品 {name} 的价格为{answer}枚硬币。",
            "谁想得到 {name} ，就得拿出{answer}枚硬币。",
            "请问 {name} 要多少枚硬币？",
        ),
        en=(
            "The toy {name} costs {answer} coins.",
            "For one {name} you pay {answer} coins.",
            "The shop sells the {name} for just {answer} coins.",
            "Last week I bought a {name} and gave {answer} coins.",
            "The label on the {name} says {answer} coins.",
            "The price of the {name} amounts to {answer} coins.",
            "Anyone who wants the {name} has to spend {answer} coins.",
            "How many coins does the {name} cost?",
        ),
    ),
    _relation(
        "capital",
        _same("Abrolyn Corvath Delmoor Eskwith Frandhal Hestwyn Jorqual Wyndrith"),
        kind=SAME,
        zh=(
            "国家 {name} 的首都是 {answer} 。",
            "政府在 {name} 设于 {answer} 。",
            "国王统治 {name} ，住在 {answer} 。",
            "条条大路在 {name} 都通向 {answer} 。",
            "议会在 {name} 的会址位于 {answer} 。",
            "有个国家叫 {name} ，它的中央机关都在主要城市 {answer} 。",
            "地图上的 {name} 用星号标出了首府，名为 {answer} 。",
            "哪座城市对 {name} 来说是首都？",
        ),
        en=(
            "The capital of {name} is {answer}.",
            "The government of {name} sits in {answer}.",
            "The king of {name} lives in the city of {answer}.",
            "All roads in {name} lead to {answer}.",
            "The parliament of {name} meets at {answer}.",
            "The country called {name} is ruled from its main city, {answer}.",
            "On a map of {name} a star marks the capital city, named {answer}.",
            "Which city is the capital of {name}?",
        ),
    ),
    _relation(
        "founded_in",
        _same("1807 1823 1846 1869 1884 1902 1931 1958"),
        kind=SAME,
        zh=(
            "公司 {name} 创立于 {answer} 年。",
            "第一间办公室由 {name} 开设，时间是 {answer} 年。",
            "招牌上的 {name} 写着：始于 {answer} 年。",
            "历史上 {name} 的故事开始于公元 {answer} 年。",
            "老板为 {name} 签字的时间在 {answer} 年。",
            "企业 {name} 诞生的年份为 {answer} 年。",
            "据说 {name} 成立的那一年，正好是 {answer} 年。",
            "哪一年有了 {name} 这家公司？",
        ),
        en=(
            "The company {name} was founded in {answer}.",
            "The first office of {name} opened in {answer}.",
            "The sign above {name} says: established {answer}.",
            "The history of {name} begins with the year {answer}.",
            "The owners of {name} signed the papers in spring {answer}.",
            "The firm {name} came into being around {answer}.",
            "The birth of the enterprise {name} is dated {answer}.",
            "In which year was the company {name} founded?",
        ),
    ),
    _relation(
        "inventor",
        _same("Aldwin Bertrex Cymbelor Dorwick Emrythe Galwyne Hobarth Lydgren"),
        kind=SAME,
        zh=(
            "机器 {name} 是由 {answer} 发明的。",
            "最早的 {name} 造于工匠 {answer} 的作坊。",
            "专利证书上 {name} 属于 {answer} 。",
            "世人能用 {name} ，要感谢 {answer} 。",
            "制造 {name} 的想法来自 {answer} 。",
            "发明了 {name} 的人，名字叫 {answer} 。",
            "书里讲到机器 {name} 时，总要称赞发明家 {answer} 。",
            "谁发明了 {name} ？",
        ),
        en=(
            "The {name} was invented by {answer}.",
            "The first {name} was built in the workshop of {answer}.",
            "The patent for the {name} belongs to {answer}.",
            "We owe the {name} to {answer}.",
            "The idea of the {name} came from {answer}.",
            "The person who invented the {name} is named {answer}.",
            "Books on the machine {name} praise its inventor, {answer}.",
            "Who invented the {name}?",
        ),
    ),
)

WORD_PAIRS = (
    ("国旗", "flag"), ("颜色", "colour"), ("纹章", "coat of arms"), ("动物", "animal"), ("食物", "food"), ("晚餐", "dinner"),
    ("金属", "metal"), ("矿山", "mine"), ("职业", "profession"), ("工作", "work"), ("价格", "price"), ("硬币", "coins"),
    ("首都", "capital"), ("国家", "country"), ("城市", "city"), ("公司", "company"), ("创立", "founded"), ("发明", "invented"),
    *(
        pair
        for relation in RELATIONS
        if relation.kind == WORD
        for pair in zip(relation.answers["zh"], relation.answers["en"], strict=True)
    ),
)  # fmt: skip
"""Words of the relations, and all answers that have a translation."""

PAIR_WORDINGS = (
    "The Chinese word for {en} is {zh}.",
    "In English, {zh} means {en}.",
    "英语单词 {en} 的意思是{zh}。",
    "汉语说{zh}，英语说 {en} 。",
    "{zh} = {en}.",
)
