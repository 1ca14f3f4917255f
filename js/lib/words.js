// What the parts on the nodes say in other languages than English. The English is written where it is
// said (t`...`, language.js); here it is the key, with {0}, {1} ... where something is put in.

const ZH = {
  "Gates": "门控",
  "Each dot is a word of the prompt: how alike it is to the concept (across), and how far that opens the gate (up)": "每个点是提示词的一个词：横向是它与概念有多相似，纵向是门控因此打开多少",
  "Gate plot of {0}: {1} tokens. Arrow keys walk through them.": "{0} 的门控曲线图：{1} 个词元。用方向键逐个查看。",
  "{0} similarity {1}, gate {2}": "{0} 相似度 {1}，门控 {2}",
  "how alike a word is to the concept": "词与概念的相似度",
  "share of the concept": "概念的份额",
  "now {0} of {1}": "现在：{1} 的 {0}",
  "bias {0} → {1}": "偏置 {0} → {1}",
  "temperature {0} → {1}": "温度 {0} → {1}",
  "strength {0} → {1}": "强度 {0} → {1}",
  "Tokens of another node's CLIP, until this node has run.": "在本节点运行之前，显示的是另一个节点的 CLIP 的词元。",
  "This subgraph is not used in the graph.": "这个子图没有在工作流中使用。",
  "This subgraph is used {0} times, and what reaches the node may differ: look at a Perfusion Tune outside of it.": "这个子图被使用了 {0} 次，到达节点的内容可能不同：请看子图外的“Perfusion 调节”。",
  "No concept reaches this node.": "没有概念到达这个节点。",
  "No prompt is encoded with this concept's CLIP.": "没有提示词是用这个概念的 CLIP 编码的。",
  "The prompt of \"{0}\" is made by another node: only a run knows its words.": "“{0}”的提示词由另一个节点生成：只有运行时才知道它的词。",
  "The prompt is empty.": "提示词是空的。",
  "No concept file is chosen on \"{0}\".": "“{0}”上没有选择概念文件。",
  "\"{0}\" makes a concept whose word is not known here: save it, and take it from a loader.": "“{0}”生成的概念，其占位词在这里还不知道：请先保存它，再用加载器加载。",
  "\"{0}\" is a group node, which is not looked into: make it a subgraph.": "“{0}”是组节点，不看它的内部：请把它转换为子图。",
  "\"{0}\" leads nowhere: nothing is set under its name.": "“{0}”没有通向任何地方：没有节点设置这个名称。",
  "Put this word into the prompt, where its cursor is; copied when there is no prompt": "把这个词插入提示词中光标所在处；没有提示词时复制它",
  "Set the bias and the temperature that the file recommends": "填入文件推荐的偏置和温度",
  "Choose…": "选择…",
  "All concepts, with their pictures": "以图片列出所有概念",
  "There is no concept file yet: train one, or put one into models/perfusion.": "还没有概念文件：请训练一个，或把文件放进 models/perfusion。",
  "For {0}; the connected model is {1}.": "用于 {0}；所连的模型是 {1}。",
  "Preview of {0}": "{0} 的预览",
  "bias {0}, temperature {1}": "偏置 {0}，温度 {1}",
  "\"{0}\" is in the prompt now.": "“{0}”已插入提示词。",
  "the prompt comes from another node": "提示词来自另一个节点",
  "no prompt is encoded with this loader's CLIP": "没有提示词是用这个加载器的 CLIP 编码的",
  "\"{0}\" is copied: {1}.": "“{0}”已复制：{1}。",
  "The browser does not let \"{0}\" be copied from here; type it into the prompt.": "浏览器不允许从这里复制“{0}”；请把它输入提示词。",
  "Search by word, name, family …": "按占位词、名称、家族搜索…",
  "Search concepts": "搜索概念",
  "Concepts": "概念",
  "Reading the files …": "正在读取文件…",
  "Close": "关闭",
  "Choose a concept": "选择概念",
  "{0} of {1} concepts": "{1} 个概念中的 {0} 个",
  "{0} more are in the node's own list": "另有 {0} 个在节点自己的列表中",
  "There is no concept in models/perfusion yet: train one, or copy its file there.": "models/perfusion 中还没有概念：请训练一个，或把它的文件复制到那里。",
  "for another family than the connected model": "与所连模型的家族不同",
  "Perfusion Tune": "Perfusion 调节",
  "The sampler did not take the slider: {0}": "采样器没有采用滑块：{0}",
  "its subgraph is used {0} times, so what one of them used could not be kept.": "它的子图被使用了 {0} 次，所以无法记录其中一处实际所用的值。",
  "What the node says": "节点的说明",
  "The chosen concept": "所选的概念",
  "ComfyUI is running a graph; its text encoder is not asked now.": "ComfyUI 正在运行工作流，现在不询问它的文本编码器。",
  "Run the graph once: the tokens come from its CLIP.": "请运行一次工作流：词元来自它的 CLIP。",
  "ComfyUI keeps no text encoder after a run (--cache-none, or its memory was freed): start it without --cache-none, or run again.": "运行后 ComfyUI 没有保留文本编码器（--cache-none，或内存已被释放）：请不带 --cache-none 启动，或再运行一次。",
  "Run the graph once: a concept is made in it, in no file.": "请运行一次工作流：其中一个概念由它生成，不在文件里。",
  "the server answered {0}: is Perfusion installed there?": "服务器的回答是 {0}：那里安装了 Perfusion 吗？",
};

const JA = {
  "Gates": "ゲート",
  "Each dot is a word of the prompt: how alike it is to the concept (across), and how far that opens the gate (up)": "点の 1 つ 1 つがプロンプトの語：コンセプトにどれだけ似ているか（横）と、それがゲートをどこまで開くか（縦）",
  "Gate plot of {0}: {1} tokens. Arrow keys walk through them.": "{0} のゲートのプロット：{1} トークン。矢印キーでたどれます。",
  "{0} similarity {1}, gate {2}": "{0} 類似度 {1}、ゲート {2}",
  "how alike a word is to the concept": "語とコンセプトの類似度",
  "share of the concept": "コンセプトの割合",
  "now {0} of {1}": "現在：{1} の {0}",
  "bias {0} → {1}": "バイアス {0} → {1}",
  "temperature {0} → {1}": "温度 {0} → {1}",
  "strength {0} → {1}": "強度 {0} → {1}",
  "Tokens of another node's CLIP, until this node has run.": "このノードを実行するまでは、別のノードの CLIP のトークンです。",
  "This subgraph is not used in the graph.": "このサブグラフはワークフローで使われていません。",
  "This subgraph is used {0} times, and what reaches the node may differ: look at a Perfusion Tune outside of it.": "このサブグラフは {0} か所で使われていて、ノードに届くものがそれぞれ違うかもしれません。外にある「Perfusion 調整」を見てください。",
  "No concept reaches this node.": "このノードに届くコンセプトがありません。",
  "No prompt is encoded with this concept's CLIP.": "このコンセプトの CLIP でエンコードされるプロンプトがありません。",
  "The prompt of \"{0}\" is made by another node: only a run knows its words.": "「{0}」のプロンプトは別のノードが作るので、語は実行するまでわかりません。",
  "The prompt is empty.": "プロンプトが空です。",
  "No concept file is chosen on \"{0}\".": "「{0}」でコンセプトファイルが選ばれていません。",
  "\"{0}\" makes a concept whose word is not known here: save it, and take it from a loader.": "「{0}」が作るコンセプトの語は、ここではまだわかりません。保存して、ローダーから読み込んでください。",
  "\"{0}\" is a group node, which is not looked into: make it a subgraph.": "「{0}」はグループノードで、中は見ません。サブグラフに変換してください。",
  "\"{0}\" leads nowhere: nothing is set under its name.": "「{0}」の先がありません。その名前で設定しているノードがありません。",
  "Put this word into the prompt, where its cursor is; copied when there is no prompt": "この語をプロンプトのカーソルの位置に入れます。プロンプトがなければコピーします",
  "Set the bias and the temperature that the file recommends": "ファイルが推奨するバイアスと温度を入れます",
  "Choose…": "選ぶ…",
  "All concepts, with their pictures": "すべてのコンセプトを画像付きで",
  "There is no concept file yet: train one, or put one into models/perfusion.": "コンセプトファイルがまだありません。学習するか、models/perfusion に置いてください。",
  "For {0}; the connected model is {1}.": "{0} 用です。接続されたモデルは {1} です。",
  "Preview of {0}": "{0} のプレビュー",
  "bias {0}, temperature {1}": "バイアス {0}、温度 {1}",
  "\"{0}\" is in the prompt now.": "「{0}」をプロンプトに入れました。",
  "the prompt comes from another node": "プロンプトは別のノードから来ています",
  "no prompt is encoded with this loader's CLIP": "このローダーの CLIP でエンコードされるプロンプトがありません",
  "\"{0}\" is copied: {1}.": "「{0}」をコピーしました：{1}。",
  "The browser does not let \"{0}\" be copied from here; type it into the prompt.": "ブラウザーの制限で「{0}」をコピーできません。プロンプトに入力してください。",
  "Search by word, name, family …": "語、名前、系統で検索…",
  "Search concepts": "コンセプトを検索",
  "Concepts": "コンセプト",
  "Reading the files …": "ファイルを読み込み中…",
  "Close": "閉じる",
  "Choose a concept": "コンセプトを選ぶ",
  "{0} of {1} concepts": "{1} 個中 {0} 個のコンセプト",
  "{0} more are in the node's own list": "ほかに {0} 個がノードの一覧にあります",
  "There is no concept in models/perfusion yet: train one, or copy its file there.": "models/perfusion にコンセプトがまだありません。学習するか、ファイルをそこにコピーしてください。",
  "for another family than the connected model": "接続されたモデルとは別の系統用",
  "Perfusion Tune": "Perfusion 調整",
  "The sampler did not take the slider: {0}": "サンプラーがスライダーを取り入れませんでした：{0}",
  "its subgraph is used {0} times, so what one of them used could not be kept.": "サブグラフが {0} か所で使われているため、それぞれが使った値を残せません。",
  "What the node says": "ノードからの知らせ",
  "The chosen concept": "選ばれたコンセプト",
  "ComfyUI is running a graph; its text encoder is not asked now.": "ComfyUI がワークフローを実行中なので、今はテキストエンコーダーに問い合わせません。",
  "Run the graph once: the tokens come from its CLIP.": "ワークフローを一度実行してください。トークンはその CLIP から来ます。",
  "ComfyUI keeps no text encoder after a run (--cache-none, or its memory was freed): start it without --cache-none, or run again.": "ComfyUI は実行後にテキストエンコーダーを保持していません（--cache-none、またはメモリーが解放されました）：--cache-none なしで起動するか、もう一度実行してください。",
  "Run the graph once: a concept is made in it, in no file.": "ワークフローを一度実行してください。コンセプトの 1 つはその中で作られ、ファイルにはありません。",
  "the server answered {0}: is Perfusion installed there?": "サーバーの応答は {0} です。そこに Perfusion はインストールされていますか？",
};

export const WORDS = { zh: ZH, ja: JA };

// What the server sends and is not the same in every language: titles of families that are no names.
export const SENT = {
  zh: { "the emoji world of the demo": "演示的 emoji 世界" },
  ja: { "the emoji world of the demo": "デモの絵文字の世界" },
};

/**
 * A text in a language, or in English where the language has none.
 * @param {string} language as the frontend's setting has it
 * @param {readonly string[]} strings the English text, cut where values are put in
 * @param {any[]} values
 */
export function inLanguage(language, strings, values) {
  const key = strings.reduce((text, part, number) => `${text}{${number - 1}}${part}`);
  const text = WORDS[language]?.[key] ?? key;
  return text.replace(/\{(\d+)\}/g, (_, number) => values[number]);
}

/** @type {(strings: readonly string[], ...values: any[]) => string} */
export const inEnglish = (strings, ...values) => inLanguage("en", strings, values);
