"""Texts of every kind, which the tests of the encoder and of its engines encode."""

TEXTS = [
    "How do I compress a file?",
    "",
    "压缩文件的方法",
    "كيف أضغط ملفا",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "Сжатие файлов",
    "naïve café ﬁle Ⅷ",
]
