"""
Chinese for extras/synthetic_stories.py: the words, the people, the plots, and the characters of the names.

Templates, slots and tables are those of english.py; a plot may have two tables, with ¶ between them. {m} is
the measure word of {thing}. What a story says of a thing or a creature it says again, in the same words: what
comes only once teaches nobody to look back.

Three rules make the stories fit to be checked: a creature comes first as "一只" and its word, before a comma
or a full stop; what has a colour is "{colour}的{thing}"; and a creature is 它, which nobody else is.
"""

import itertools
import re

from extras.stories import english

# The 3,755 characters in common use, as GB 2312 lists them; some names have any of them.
CODES = itertools.product(range(0xB0, 0xD8), range(0xA1, 0xFF))
COMMON = b"".join(map(bytes, CODES)).decode("gb2312", errors="ignore")
RUDE = """
    逼毙蠢窒忌亡殡殉粪痰脓疮溃淤屎尿奸淫尸死妓嫖娼婊屁阴肏屌操奴妾贱赌毒鸦贼匪杀砍刑狱囚癌瘤癫痴疯残
    瘸瞎聋哑孤寡坟墓棺葬丧鬼魔魂血腥肛裸奶乳胸臀骚娘爹妈爸爷奶婆爱恨性胎孕党军政共产民国台独藏疆
"""
GRAMMAR = "一只他她它的了是在和说着"  # stand in no name
SOUNDS = """阿巴布卡克拉鲁斯格尔德特姆尼诺奥帕皮普奇萨塔托瓦维西亚伊扎芬芙莱洛罗林曼米莫娜朗兰利琳露伦玛麦梅蒙
    佩乔丘莎苏泰汤威沃希修雅贝宾迪丁杜多菲弗盖戈古哈海霍吉加杰凯库魁咕噜啦咚嘟哒嘀"""
ANIMALS = """龙兽怪熊猫兔鸟鱼虎马牛狼狗鼠象狐鹿豹蛙龟鹅鸭鸡猴羊蛇虫蜂蝶鹰鲸蟹狮鹤人精仙侠娃球
    猪驴鲨豚猿鳄骆驼貂獾犀羚虾蝎蝠鸽鸦"""

SURNAMES = """王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾
    丁姜范秦孟"""
GIVEN = "一伟英华慧文志宇博俊涵梓怡诗峰洋玲秀敏瑶萱"
HEROES = {  # the others are put together
    "girl": """莉莉 朵朵 妞妞 婷婷 甜甜 萌萌 丫丫 琪琪 欣欣 佳佳 露露 娜娜 芳芳 思思 雯雯 小红 小丽 小芳 小美
        小梅 珍珍 菲菲 苗苗 晓晓 果果 小兰""".split(),
    "boy": """小明 乐乐 豆豆 强强 冬冬 亮亮 壮壮 小刚 小宝 小虎 阳阳 涛涛 浩浩 鹏鹏 东东 飞飞 牛牛 凯凯 磊磊
        小龙 小杰 大壮 晨晨 轩轩 皮皮 小海""".split(),
}
PRONOUNS = {"girl": ("她",), "boy": ("他",)}  # of the hero; a creature is 它
KINS = ("妈妈", "爸爸", "奶奶", "爷爷", "外婆")

TRIED_HEROES = ("莉莉", "小明", "悠悠", "王小雨")  # no story has the last two
# What people may try: no story has it.
KEPT_OUT = """
    修格斯 皮卡丘 恐龙 奥特曼 哥斯拉 独角兽 机器猫 孙悟空 麒麟 霸王龙 喜羊羊 灰太狼 光头强 佩奇 海绵宝宝
    米老鼠 唐老鸭 史莱姆 哪吒 貔貅 饕餮 凤凰 美人鱼 机器人 外星人 变形金刚 蜘蛛侠 葫芦娃 猪八戒 雪怪
    克苏鲁 三头犬 九尾狐 龙猫 猫头鹰 长颈鹿 穿山甲 鸭嘴兽 水豚 考拉 企鹅 刺猬 喷火龙 大脚怪 奶龙 绿巨人
    稻草人 柯基 羊驼 独眼怪 哆啦A梦 Totoro 会飞的鱼 3号机器人
""".split()
# No name that is rude, or means somebody, and none in which a hero's would be found.
UNWANTED = re.compile(
    "|".join([*KEPT_OUT, *HEROES["girl"], *HEROES["boy"], *KINS, english.UNWANTED.pattern])
    + """
    | [黑白黄红洋流小大人]人 | 人[头妖] | [走公猪黄]狗 | 狗[头腿仔] | 猪[头狗] | [野土山]鸡 | 鸡[头巴]
    | 龟[头公儿] | 王八 | 八九 | 金三 | 小[三平] | 泽东 | 安门 | 港独 | 东突 | 希特 | 列宁 | 斯大
    | 马[克列] | 巴马 | 拉登 | 塔利 | 特朗 | 朗普 | 普京 | 阿拉 | 古兰 | 精[子油] | 草泥 | 泥马 | 儿子
    | 孙子 | [打双]飞 | [黄毛]片 | 西天 | 归西 | 升天 | 上西 | 骨灰 | 大麻 | 流星人 | 口活 | 吹箫 | 公公""",
    re.X | re.I,
)

# A girl and a boy may have the same: who is 她 or 他 is told only where 女孩 or 男孩 stands before it.
HERO_NAME = """{a}{b}/{a}{b}/{a}{b}/{a}{a}/{given}{given}/小{a}/小{given}/阿{a}/大{a}/老{surname}/
    {surname}{a}/{surname}{given}/{surname}{a}{b}/{surname}{a}{b}/{surname}{given}{a}/{surname}小{a}/{a}{b}{c}/
    {sound}{sound2}/{sound}{sound2}/{sound}{sound2}{sound3}/{sound}{sound2}{sound3}/{sound}{sound2}{sound3}{sound4}/
    {double}{given}/{double}{a}{b}/{latin}"""
WORDS = {
    "sound": " ".join("".join(SOUNDS.split())),
    "rare": " ".join(c for c in COMMON if c not in RUDE + GRAMMAR),
    "animal": " ".join(ANIMALS),
    # The characters of a name: {a} is one of the stories' own, or of the common ones; {b}, {c}, {d} others.
    "a": "{own}/{own}/{own}/{rare}/{rare}",
    "b": "{own2}/{own2}/{own2}/{rare2}/{rare2}",
    "c": "{own3}/{own3}/{own3}/{rare3}/{rare3}",
    "d": "{own4}/{own4}/{own4}/{rare4}/{rare4}",
    "name": """{a}{b}/{a}{b}/{a}{b}/{a}{a}/{a}{animal}/{sound}{sound2}/{a}{b}{c}/{a}{b}{c}/{a}{b}{c}/
        {a}{b}{c}/{a}{a}{b}/{a}{b}{b}/{a}{a}{a}/{a}{b}{animal}/{a}{b}{animal}/小{a}{animal}/小{a}{b}/{sound}{a}{sound2}/
        {sound}{sound2}{sound3}/{sound}{sound2}{sound3}/{sound}{sound}{sound2}/{sound}{sound2}{sound2}/
        {sound}{sound2}{animal}/{a}{b}{c}{d}/{a}{b}{c}{d}/{a}{b}{c}{d}/{a}{a}{b}{b}/{a}{b}{a}{b}/
        {a}{b}{c}{animal}/{a}{a}{b}{animal}/{sound}{sound2}{sound3}{sound4}/{sound}{sound2}{sound3}{sound4}/
        {sound}{sound2}{sound}{sound2}/{sound}{sound2}{sound3}{a}/{a}{b}{c}{d}{animal}/{sound}{sound2}{sound3}{a}{b}/
        {a}{b}的{animal}/{a}{b}的{c}{d}/{latin}/{latin}/{a}{b}{cap}{c}/小{cap}/{number}号{animal}""",
    # Names as 哆啦A梦, 8号机 and Totoro: each letter is a token.
    "latin": """{cap}{vowel}{letter}/{cap}{vowel}{letter}{vowel}/{cap}{vowel}{letter}{vowel2}{letter2}/
        {cap}{letter}{vowel}{letter2}{letter2}{vowel2}{letter3}/{cap}{vowel}{letter}{vowel2}{letter2}{vowel}{letter3}""",
    "cap": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "vowel": "a e i o u",
    "letter": "b c d f g h j k l m n p q r s t v w x y z",
    "number": "{digit}/{digit}/{digit}{digit2}",
    "digit": "1 2 3 4 5 6 7 8 9 0",
    # Two heroes in five have a name that is put together: visitors bring their own.
    "hero_name": HERO_NAME,
    "surname": " ".join("".join(SURNAMES.split())),
    "double": "欧阳 司马 诸葛 上官 慕容",
    "given": " ".join(GIVEN),
    "colour": "红色 橙色 黄色 绿色 蓝色 紫色 粉色 白色 黑色 金色 银色 棕色 青色",
    "place": """花园里 花园里 公园里 小河边 草地上 山坡上 树林里 池塘边 大树下 院子里 小桥边 田野里 菜园里
        村口 海边 路边 果园里 竹林里 湖边 小山上 井边 学校门口 操场上""",
    "time": "星期六的早上 星期天的下午 放学以后 吃过午饭 一个晴朗的早上 一个暖和的下午 一个安静的傍晚",
    "hobby": "画画 唱歌 跳舞 看云 捉蜻蜓 捡树叶 听故事 搭积木 看蚂蚁搬家 吹泡泡 爬树 踩水坑 数星星 摘野花",
    "good": "善良 勇敢 聪明 可爱 活泼 懂事 爱笑 热心 细心 有礼貌",
    "animal_word": "小松鼠 老山羊 小青蛙 大白鹅 小麻雀 老黄牛 小乌龟 小蜜蜂 花喜鹊 小白兔",
    "way": "小河边 山那边 小桥那头 竹林里 山洞口 大石头后面 向日葵地里 老槐树下",
    "hideout": "草堆后面 大水缸里 老槐树后面 葡萄架下 旧木箱里 向日葵地里 小船里 滑梯下面 石狮子后面",
    "spot": "床底下 沙发后面 衣柜里 洗衣篮里 窗帘后面 桌子底下 玩具箱里 阳台上 枕头下面 门后面",
    # The bare "有一天，莉莉遇到了一只..." is the most common meeting.
    "has": """一条毛茸茸的尾巴/一双亮晶晶的眼睛/两只尖尖的耳朵/一对透明的翅膀/一个翘翘的鼻子/一个圆圆的肚子/
        两只弯弯的角/一身软软的卷毛/一条细细的脖子/一双胖乎乎的脚/几根硬硬的胡子/两只长长的耳朵""",
    "act": "点了点头/眨了眨眼睛/转了一个圈/摇了摇脑袋/跳了一下/伸了个懒腰/拍了拍手",
    "meet": """有一天，{hero}遇到了一只{kind}。/有一天，{hero}遇到了一只{kind}。/有一天，
        {hero}在{place}遇到了一只{kind}。/有一天，{hero}在{place}遇到了一只{kind}。/有一天，
        {hero}在{place}[玩|散步|看风景]，遇到了一只{kind}。/{time}，{hero}[来到{place}|在{place}玩]，[遇到|
        看见]了一只{kind}。/从前，有个{good}的{boy}叫{hero}，{he}[很|最]喜欢{hobby}。有一天，{he}[在{place}|]
        遇到了一只{kind}。/从前，有个{boy}叫{hero}。[有一天|{time}]，{he}在{place}遇到了一只{kind}。""",
    # Where the hero may begin a sentence, the creature has 这只 or 那只 before it: or a model blends them.
    "looks": """这只{kind}全身都是{colour2}的，[长着|有]{has}。/{hero}从来没见过{kind}。
        它全身都是{colour2}的，[长着|有]{has}。/那只{kind}全身都是{colour2}的，还[长着|有]{has}。""",
    "end": """从[此|那]以后，{hero}和{kind}成了[最好的|好]朋友。/从那以后，{hero}常常去看那只{colour2}的
        {kind}。/回到家，{hero}把{kind}的事讲给{kin}听。{kin}[笑着|摸摸{hero}的头]说：“[你真是个好孩子|
        下次请{kind}来家里玩吧|我也想看看那只{colour2}的{kind}]。”/该回家了，{hero}向{kind}挥挥手。
        {kind}{act}，说：“[明天见|下次再来玩]，{hero}！”/{hero}笑了，{kind}也笑了。/{hero}抱了抱{kind}，
        [高高兴兴|蹦蹦跳跳]地回家了。/那天晚上，{hero}梦见那只{colour2}的{kind}{act}，对{hero}笑。/
        回到家，{hero}画了一只{colour2}的{kind}，还给它画上了{has}。/回到家，{hero}画了一只{colour2}的{kind}，
        还给它画上了{has}。""",
}

PLOTS = {
    "中秋节，{hero}请{kind}吃{thing}。": {
        "together": """thing: m/豆沙月饼: 块/莲蓉月饼: 块/五仁月饼: 块/枣泥月饼: 块/
        蛋黄月饼: 块/椰蓉月饼: 块/ 芝麻月饼: 块/水果月饼: 块/绿豆月饼: 块/火腿月饼: 块""",
        "story": """{meet}{looks}¶那天是中秋节，{hero}[手里拿着|兜里装着|正捧着]一{m}{thing}。
        “这是什么呀？[好香啊|闻起来真香]！”{kind}{act}，问道。“这是{thing}，”{hero}说，“[中秋节要吃月饼，
        看月亮|是我和{kin}一起做的]。”¶{hero}把{thing}掰成两半，[大的一半|一半]给了{kind}。{kind}咬了一口，
        [高兴得跳了起来|眼睛都亮了|笑得合不拢嘴]：“[真甜啊|真好吃]！[我第一次吃到{thing}|我最喜欢{thing}了]！
        ”¶月亮升起来了，又大又圆。{hero}和{kind}[靠在一起|并排坐着]，一边吃，一边看月亮。
        “[月亮上真的有小兔子吗|月亮是不是也像一块大月饼]，{hero}？”{kind}问。{hero}说：
        “[我们一起问问月亮吧|明年中秋节我们再一起看]，{kind}。”{end}""",
    },
    "下雪了，{hero}把{thing}借给{kind}。": {
        "together": """thing: m: wear/围巾: 条: 解下来，围在{kind}的脖子上/
        帽子: 顶: 摘下来，戴在{kind}的头上/ 手套: 双: 脱下来，套在{kind}的手上/
        围脖: 个: 摘下来，套在{kind}的脖子上/耳罩: 副: 摘下来，给{kind}戴上""",
        "story": """{meet}{looks}¶天很冷，[忽然下起了雪|天上飘起了雪花]。{kind}[缩成一团|冷得直发抖|
        一连打了三个喷嚏]。“你怎么不戴{thing}呀，{kind}？”{hero}问。“我没有{thing}，”{kind}小声说。
        {hero}[想了想|二话不说]，把自己那{m}{colour}的{thing}{wear}。“[真暖和|一点儿也不冷了]！”
        {kind}{act}，笑了。¶他们一起堆了一个[胖胖的|高高的]雪人，[用扣子做眼睛，用胡萝卜做鼻子|
        还给雪人画上了笑脸]。“[雪人会不会冷|雪人也想要{thing}吗]？”{kind}问。{hero}[哈哈大笑。|笑着说：
        “雪人最喜欢冷啦。”]¶第二天，雪停了。{kind}[早早地|一大早]来还那{m}{colour}的{thing}。“送给你吧，
        {kind}，”{hero}说，“[{kin}给我织了新的|我家里还有一{m}]。”{kind}戴着{colour}的{thing}，
        [高兴得转圈圈|舍不得摘下来]。{end}""",
    },
    "{hero}的{thing}飞走了，{kind}帮忙拿回来。": {
        "together": """thing: m/蝴蝶风筝: 只/金鱼风筝: 只/老鹰风筝: 只/燕子风筝: 只/
        蜻蜓风筝: 只/孔雀风筝: 只/ 蜜蜂风筝: 只/鲤鱼风筝: 只""",
        "story": """{meet}{looks}¶{hero}正在放风筝。那是一{m}{colour}的{thing}，[是{kin}亲手做的|
        飞得又高又稳]。[忽然刮来一阵大风|忽然，线断了]，{colour}的{thing}[挂到了大树上|落到了屋顶上]。
        {hero}急得快哭了。¶“[别着急|别难过]，我来帮你，”{kind}说。{kind}{act}，[三两下就爬了上去|使劲一跳，
        就跳了上去]，把那{m}{colour}的{thing}[取了下来|轻轻地拿了下来]。“[太好了|你真厉害]！谢谢你，{kind}！
        ”{hero}[高兴地说|拍着手说]。¶{hero}把线交给{kind}：“你也来[试试|放一放]吧，{kind}！”
        {kind}[迎着风跑啊跑|一边跑一边笑]，{colour}的{thing}又飞上了天，[越飞越高|在白云下面飘啊飘]。{end}""",
    },
    "{hero}把{food}分给{kind}，{kind}送来一{m}{thing}。": {
        "together": """food: n/糖葫芦: 串/烤红薯: 个/豆沙包: 个/芝麻饼: 块/糖人: 个/棉花糖: 个/
        煮玉米: 根/肉包子: 个/葱油饼: 张/ 肉粽子: 个/春卷: 个/绿豆糕: 块 ¶ thing: m/珠子: 颗/石头: 块/
        小花: 朵/羽毛: 片/贝壳: 枚/铃铛: 个/纽扣: 颗/松果: 颗""",
        "story": """{meet}{looks}¶那只{kind}的肚子咕咕叫。“我[一天没吃东西了|饿得走不动了]，”{kind}[小声|
        不好意思地]说。{hero}手里正好有一{n}{food}，是{kin}刚买的。{hero}[也很想吃|有点舍不得]，可还是说：
        “[我们一人一半吧|给你吃吧，别客气]，{kind}！”¶{kind}吃着{food}，{act}，说：“[这{n}{food}真好吃|
        我从来没吃过这么好吃的{food}]！”{hero}[看着它笑了|听了心里暖暖的]。¶第二天，{kind}[跑来找{hero}|
        在老地方等{hero}]，手里拿着一{m}{colour}的{thing}。“这{m}{colour}的{thing}送给你，{hero}，”
        {kind}说，“[谢谢你的{food}|这是我最喜欢的东西]。”{hero}把{colour}的{thing}[放在枕头边|小心地收好|
        看了又看]。{end}""",
    },
    "{hero}帮{kind}找妈妈。": {
        "story": """{meet}{looks}¶那只{kind}一边走一边哭。“你怎么了，{kind}？”{hero}问。“我找不到妈妈了，”
        {kind}[擦着眼泪|抽抽搭搭地]说。“你妈妈长什么样？”“我妈妈也是{colour2}的，也有{has}[，
        就是比我大得多|]，”{kind}说。¶{hero}[牵着|带着]{kind}去问{animal_word}。{animal_word}说：
        “我看见一只很大的{kind}[往{way}|到{way}]去了，[走得很急|一边走一边喊]。”{hero}和{kind}[赶紧|连忙]
        往{way}跑。{kind}累了，{hero}就[背着|抱着]它走。¶到了{way}，果然，{colour2}的{kind}妈妈[站在那里|
        正在四处找]。“妈妈！”{kind}大声喊。{kind}妈妈[一把抱住了|紧紧抱住]{kind}，对{hero}说：“[好孩子|
        真不知道怎么感谢你]，谢谢你！”{kind}{act}，说：“[你来我家玩吧|我不会忘记你的]，{hero}！”[|
        {hero}明白了，[出门要跟紧妈妈|帮助别人，自己也快乐]。]""",
    },
    "{kind}怕黑，{hero}送给它{thing}。": {
        "together": """thing: m/小台灯: 盏/灯笼: 盏/手电筒: 支/月亮灯: 盏/星星灯: 盏/蘑菇灯: 盏/
        夜明珠: 颗""",
        "story": """{meet}{looks}¶他们[说说笑笑|玩啊玩]，不知不觉，天黑了。{kind}[忽然不说话了|
        紧紧拉住{hero}的手|躲到{hero}身后]。“你怎么了，{kind}？”{hero}问。“我怕黑，”{kind}[小声说|
        低着头说]，“[黑的地方好像有大怪物|我怕什么也看不见]。”¶“[我以前也怕黑|别怕，有我呢]，{kind}，”
        {hero}说。{hero}[从包里拿出|跑回家拿来]一{m}{colour}的{thing}，四周[一下子|慢慢地]亮了。“你看，
        [那不是怪物，是一棵树|这里跟白天一样，什么也没有变]，”{hero}说。{kind}{act}，[不好意思地|]笑了。¶
        {hero}把那{m}{colour}的{thing}送给了{kind}。晚上，{kind}把{colour}的{thing}[放在床头|放在枕头边]，
        [看着窗外的星星|听着外面的虫子唱歌]，[安安稳稳地睡着了|再也不怕黑了]。“晚安，{kind}，”{hero}[说|
        在心里说]。[|{hero}明白了，[谁都会有害怕的时候|有朋友在，就不怕黑]。]""",
    },
    "{hero}教{kind}{skill}。": {
        "together": """skill: thing: m: fail: win/
        骑车: 自行车: 辆: 一下子摔在地上: {kind}一连骑了三大圈/
        溜冰: 溜冰鞋: 双: 滑了个大跟头: {kind}一连转了三个圈/
        跳绳: 花绳: 根: 被绳子绊住了脚: {kind}一连跳了二十下/
        踢毽子: 毽子: 个: 一下也没踢着: {kind}一连踢了十下/
        拍球: 皮球: 个: 球一下子滚跑了: {kind}一连拍了三十下/
        打陀螺: 陀螺: 个: 陀螺歪歪倒倒地停了: 陀螺转得又快又稳/
        吹笛子: 笛子: 支: 只吹出噗噗的声音: {kind}一连吹了三支曲子/
        打鼓: 小鼓: 面: 敲得乱七八糟: 鼓声咚咚响，真好听/
        滑雪: 滑雪板: 副: 坐到了雪堆里: {kind}一连滑了三次""",
        "story": """{meet}{looks}¶{hero}有一{m}{colour}的{thing}。“我也想学{skill}，”{kind}说，
        “[可是没有人教我。|你能教教我吗？]”{hero}把那{m}{colour}的{thing}借给了{kind}。{kind}试了试，
        {fail}。¶{kind}[红着脸|低下头]说：“{skill}太难了，[我学不会|我太笨了]。”“别灰心，{kind}，”
        {hero}说，“[谁也不是一下子就学会的|我学的时候也这样|慢慢来，再试一次]。”{kind}[一遍又一遍地练|
        练了整整一个下午|练了好几天]{skill}。终于，{win}！¶“我会{skill}啦！”{kind}{act}，[高兴得大叫|乐得直蹦]。
        {hero}拍着手说：“{kind}真棒！”{kind}把{colour}的{thing}擦得干干净净，还给了{hero}。{end}[|
        {hero}明白了，[多练习就能学会|只要不怕难，就能学会]。]""",
    },
    "{hero}和{kind}捡到{thing}，还给了{owner}。": {
        "together": """thing: m/钱包: 个/雨伞: 把/书包: 个/水壶: 个/钥匙: 串/眼镜: 副/
        故事书: 本/布娃娃: 个/围巾: 条/帽子: 顶/手表: 块/ 梳子: 把 ¶ owner: m2/老奶奶: 位/老爷爷: 位/
        阿姨: 位/叔叔: 位/小姐姐: 位/小弟弟: 个/小妹妹: 个""",
        "story": """{meet}{looks}¶他们走着走着，看见地上有一{m}{colour}的{thing}。“[真好看|真漂亮]！
        我们带回家吧，”{kind}{act}，说。{hero}摇摇头：“不行，{kind}。[捡到东西要还|这不是我们的]，
        丢了{thing}的人一定很着急。”{hero}和{kind}就[坐在路边|站在原地]等。¶等啊等，一{m2}{owner}[急急忙忙|
        满头大汗]地跑来了，问：“你们[看见|见过]一{m}{thing}没有？”“什么颜色的呀？”{kind}问。“{colour}的！
        ”{hero}[连忙|笑着]把那{m}{colour}的{thing}递了过去。¶“谢谢你，{hero}！谢谢你，{kind}！”
        {owner}接过{colour}的{thing}，[笑得合不拢嘴|高兴极了]。{kind}[小声|悄悄]对{hero}说：
        “[原来还给别人这么开心|下次我也要这样做]。”{end}""",
    },
    "{hero}和{kind}一起种{thing}。": {
        "together": """thing: m/牵牛花: 朵/月季花: 朵/郁金香: 朵/百合花: 朵/牡丹花: 朵/菊花: 朵/
        茉莉花: 朵/凤仙花: 朵/绣球花: 朵/杜鹃花: 朵""",
        "story": """{meet}{looks}¶那只{kind}手里有一颗小小的种子。“这是{thing}的种子，”{kind}说，
        “[我想看它开花|可是我不会种]。”“我们一起种吧，{kind}！”{hero}说。他们[在墙角|在窗户下面]
        挖了一个小坑，把种子埋了进去。¶[三天过去了|第一天过去了]，什么也没有长出来。“[它是不是睡着了|
        它怎么还不出来]？”{kind}{act}，[着急地|难过地]问。“别急，{kind}，”{hero}说，“[花和小孩一样，
        要慢慢长大|天天浇水，它就会长出来]。”{hero}和{kind}天天给它浇水。¶一天早上，{kind}[大声喊|跑来敲门]
        ：“{hero}，快来看！”开花了，是一{m}{colour}的{thing}！{colour}的{thing}在风里[轻轻地摇|点着头]，
        [香极了|好看极了]。{hero}画下了那{m}{colour}的{thing}，把画送给了{kind}。{end}[|{hero}明白了，
        [做事要有耐心|好东西要慢慢等]。]""",
    },
    "{hero}和{kind}捉迷藏，{kind}睡着了。": {
        "story": """{meet}{looks}¶“我们来捉迷藏吧，{hero}！”{kind}说。{hero}[闭上眼睛|捂住眼睛]，
        从一数到[十|二十]。{kind}[踮着脚|悄悄地]跑了。¶“藏好了吗，{kind}？”{hero}喊。没有人回答。
        {hero}看了看{hideout2}，没有；又看了看{hideout3}，也没有。“[我认输了|你赢了]，快出来吧，{kind}！”
        {hero}[大声喊|着急地喊]。¶这时，{hero}听见了[呼噜呼噜|轻轻的打呼噜]的声音，是从{hideout}传来的。
        {hero}走到{hideout}一看，{kind}[躺|趴]在那里睡着了！“找到你了，{kind}！”{hero}[轻轻地推了推它|小声说]
        。{kind}{act}，[迷迷糊糊地|打着哈欠]问：“[我赢了吗|天亮了吗]？”{hero}[笑得肚子疼|哈哈大笑]：
        “{hideout}[真舒服吧|可不是床]，{kind}！”{end}""",
    },
    "{hero}的{thing}{cname}不见了，又找到了。": {
        "together": """thing: m/布老虎: 只/布兔子: 只/布熊: 只/布小狗: 只/布猴子: 只/布大象: 只/布青蛙: 只/
        布鸭子: 只/布绵羊: 只/布松鼠: 只""",
        "story": """从前，有个{boy}叫{hero}。{he}有一{m}{colour}的{thing}，名字叫{cname}。
        [{hero}去哪儿都带着{cname}|{hero}每天晚上都抱着{cname}睡觉|{hero}有什么话都跟{cname}说]。¶一天[晚上|
        下午]，{cname}不见了。“[没有{cname}，我睡不着|我的{cname}不见了]，”{hero}对{kin}说。“别急，”
        {kin}说，“那{m}{colour}的{thing}一定还在家里。”他们看了看{spot2}，没有{cname}；又看了看{spot3}，
        也没有{cname}。¶{hero}[想啊想|忽然想起来了]，又去看了看{spot}，那里露出一只{colour}的[耳朵|小脚]。
        是{cname}！“找到你啦，{cname}！”{hero}[高兴得跳了起来|把它抱得紧紧的]。{cname}[身上全是灰|
        掉了一颗扣子]，{kin}[给它洗了个澡|把它收拾得干干净净]。¶那天晚上，{hero}抱着{colour}的{thing}，
        [亲了亲它|躺在床上]，说：“[再也不许乱跑啦|晚安]，{cname}。”[|{hero}明白了，[东西要放回原来的地方|
        自己的东西要收好]。]""",
    },
    "{hero}捡到一个{colour}的蛋，蛋里钻出一只{kind}。": {
        "story": """[有一天|{time}]，{hero}在{place}捡到了一个{colour}的蛋。“[这是谁的蛋呀|里面是什么呢]？
        ”{hero}[自言自语|想]。{hero}把{colour}的蛋带回家，[用毛巾包好|放在铺着棉花的篮子里]，[每天看好几次|
        天天守着它]。¶[三|五|七]天以后，{colour}的蛋动了。咔嚓！蛋壳里钻出一只{kind}。
        这只刚出生的{kind}全身都是{colour2}的，[长着|有]{has}。“你好，{kind}！”{hero}[轻轻地|高兴地]说。¶
        {kind}一天天长大了。可是一到晚上，{kind}就[望着窗外|趴在窗台上]，不吃也不玩。“{kind}想妈妈了，”
        {kin}说。{hero}很舍不得，可还是点了点头。¶第二天，{hero}带着{kind}来到{way}。
        一只{colour2}的{kind}妈妈正[等|站]在那里。“再见了，{kind}！”{hero}说。{kind}{act}，[跟着妈妈走了|
        一步一回头地走了]。[|后来，{kind}常常来看{hero}。]""",
    },
    "{kind}拿了{hero}的{thing}，又还了回来。": {
        "together": """thing: m/小汽车: 辆/拨浪鼓: 个/小木马: 匹/小火车: 列/口琴: 把/风车: 个/
        望远镜: 架/小飞机: 架/小船: 条/ 万花筒: 个/哨子: 个/弹珠: 颗""",
        "story": """{meet}{looks}¶那只{kind}把什么东西藏在身后。“你拿着什么呀，{kind}？”{hero}问。
        {kind}低下头，[慢慢地|红着脸]拿出一{m}{colour}的{thing}。“那是我的{thing}！”{hero}说，
        “我找了[一整天|好久]！”¶“对不起，{hero}，”{kind}{act}，小声说，“我[没有玩具|从来没有过{thing}]，
        只想玩一会儿。”{kind}把那{m}{colour}的{thing}还给了{hero}。{hero}[想了想|有点生气，可是看它快哭了]，
        说：“没关系，{kind}。[下次先问问我，好吗？|说了实话，就是好孩子。]”¶他们一起玩{colour}的{thing}，
        一直玩到[太阳下山|{kin}来叫{hero}吃饭]。“[跟你玩真开心|谢谢你]，{hero}，”{kind}说。{end}[|
        {hero}明白了，[知错就改是好孩子|朋友之间要说实话]。]""",
    },
    "{kind}牙疼，{hero}送给它一把牙刷。": {
        "together": """thing: m/牙刷: 把""",
        "story": """{meet}{looks}¶那只{kind}捂着脸，哎哟哎哟地叫。“你怎么了，{kind}？”{hero}问。“我牙疼，”
        {kind}说，“[疼得睡不着觉|什么也吃不下]。”“你是不是[天天吃糖|晚上不刷牙]呀？”{kind}红着脸，
        点了点头。¶{hero}[跑回家|回家]拿来一把{colour}的牙刷。“这把{colour}的牙刷送给你，{kind}，”
        {hero}说，“[早上刷一次，晚上刷一次|上面的牙往下刷，下面的牙往上刷]。”{kind}[学着{hero}的样子|
        张大嘴巴]刷啊刷，刷得满嘴都是白泡泡。{hero}[笑弯了腰|哈哈大笑]。¶过了几天，{kind}举着{colour}的牙刷来
        找{hero}。“你看，我的牙[不疼了|又白又亮]！”{kind}{act}，[得意地|开心地]说。{hero}[伸出大拇指|拍拍手]
        ，说：“{kind}真棒！”{end}""",
    },
}

# A token that no name has had is never copied. So names have each character that a story may write.
TEXTS = [text for plot in PLOTS.values() for text in plot.values()]
TEXTS += [text for slot, text in WORDS.items() if slot != "rare"]
TEXTS += [*HEROES["girl"], *HEROES["boy"], *KINS, "男女"]
OWN = set(re.findall("[\u4e00-\u9fff]", "".join(TEXTS)))
WORDS["own"] = " ".join(sorted(OWN - set(GRAMMAR)))


def is_hero(name):
    """Whether a name that was put together may be a hero's: no story writes it otherwise."""
    known = name in TRIED_HEROES or any(name in text for text in TEXTS)
    return not known and not UNWANTED.search(name)
