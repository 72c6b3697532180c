"""Answers of pyhelp that come from no docstring: keywords, greetings, its limits, and a few long ones."""

from __future__ import annotations

import codecs
import contextlib
import io
import keyword

__all__ = ["BETTER", "KEYWORDS", "LONG_ANSWERS", "SMALLTALK"]

_LIMITS = (
    "I only know short facts about the Python standard library. "
    "Ask me, for example: What does os.path.join do?"
)

SMALLTALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Who are you?",
            "What are you?",
            "Introduce yourself.",
            "What is your name?",
            "Tell me about yourself.",
        ),
        "I am pyhelp, a small language model that answers short questions about the Python standard library.",
    ),
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hi there!",
            "Hey",
            "Good morning",
            "Hello, how are you?",
            "hello there",
        ),
        "Hello! I am pyhelp. Ask me about the Python standard library, "
        "for example: What does os.path.join do?",
    ),
    (
        (
            "What can you do?",
            "Help",
            "help",
            "How can you help me?",
            "What do you know?",
            "What can I ask you?",
        ),
        "I can say what functions, classes and modules of the Python standard library do, "
        "and tell you the signatures of many functions.",
    ),
    (
        ("Thank you", "Thanks!", "Thank you!", "thanks", "Great, thank you.", "Thanks a lot"),
        "You are welcome! Ask me anything else about the Python standard library.",
    ),
    (("Goodbye", "Bye", "Bye!", "See you later", "Good night"), "Goodbye, and happy coding!"),
    (
        ("Who made you?", "Who trained you?", "Who created you?", "Where do you come from?"),
        "I was trained from scratch for the Millstream engine, on Python's documentation strings.",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "Are you a large language model?"),
        "I am very small: fewer than six million parameters. I know some facts by heart and little else.",
    ),
    (("Say hello.", "Say hello", "Say hello world", "Say hi."), "Hello, world!"),
    (("What is 2 + 2?", "What is 2+2?", "2+2", "How much is 2 + 2?"), "2 + 2 is 4."),
    (("Are you there?", "Test", "test", "ping", "Are you alive?"), "Yes, I am here and ready to answer."),
    (
        (
            "What is the capital of France?",
            "Tell me a joke.",
            "Write a poem.",
            "Write a story about a cat.",
            "What is the weather today?",
            "How do I cook rice?",
            "Who is the president?",
            "What is love?",
            "Translate this to French.",
            "Who won the world cup?",
            "What is the meaning of life?",
            "Tell me about history.",
            "Write an essay about trees.",
            "What is Rust?",
            "How tall is Mount Everest?",
            "Write a haiku about the sea.",
            "Once upon a time",
            "Tell me a story.",
            "What is a good movie?",
            "Explain quantum physics.",
            "Write me a web server.",
            "Why is the sky blue?",
        ),
        _LIMITS,
    ),
    (
        ("What is Python?", "Tell me about Python.", "Explain Python."),
        "Python is a programming language that is easy to learn and powerful, with a large standard library.",
    ),
    (
        ("What is Millstream?", "Tell me about Millstream.", "What is millstream?"),
        "Millstream is an engine that serves language models with continuous batching; pyhelp ships with it.",
    ),
)


def _zen() -> str:
    """The text that `import this` prints; the import's own printing is swallowed."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def _count(last: int) -> str:
    return ", ".join(str(n) for n in range(1, last + 1)) + "."


LONG_ANSWERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "What is the Zen of Python?",
            "Recite the Zen of Python.",
            "Tell me the Zen of Python.",
            "import this",
        ),
        _zen(),
    ),
    (
        ("List the Python keywords.", "What are the keywords of Python?", "Which keywords does Python have?"),
        "The keywords of Python are " + ", ".join(keyword.kwlist) + ".",
    ),
    *(
        ((f"Count from 1 to {n}.", f"Count to {n}.", f"Please count to {n}.", f"Count up to {n}."), _count(n))
        for n in (3, 5, 10, 20, 30, 50, 100)
    ),
)

KEYWORDS: dict[str, str] = {
    "False": "False is the constant for a false truth value, one of the two instances of bool.",
    "None": "None is the constant that stands for the absence of a value, the only instance of NoneType.",
    "True": "True is the constant for a true truth value, one of the two instances of bool.",
    "and": "and gives its left operand if that is false, and its right operand otherwise.",
    "as": "as gives a name to what an import, a with statement or an except clause yields.",
    "assert": "assert raises AssertionError when its condition is false, unless Python runs with -O.",
    "async": "async marks a def, for or with statement, or a comprehension, as asynchronous.",
    "await": "await suspends a coroutine until the awaitable object has a result, and gives that result.",
    "break": "break leaves the nearest enclosing for or while loop and skips its else clause.",
    "class": "class runs its body in a new namespace, makes a class object from it and binds it to a name.",
    "continue": "continue goes on with the next round of the nearest enclosing for or while loop.",
    "def": "def makes a function object and binds it to a name; the body runs when the function is called.",
    "del": "del unbinds a name, or removes an attribute, an item or a slice from an object.",
    "elif": "elif is tested when the conditions of the if statement before it were all false.",
    "else": "else holds what runs when no condition was true, or when a loop ended without break.",
    "except": "except names the exceptions that its block handles when the try block raises one of them.",
    "finally": "finally holds the cleanup code of a try statement, which runs with or without an exception.",
    "for": "for runs its body once for each item of an iterable object.",
    "from": "from imports names out of a module, or gives the cause of an exception in a raise statement.",
    "global": "global makes assignments to the listed names act on the variables of the module.",
    "if": "if runs its block only when its condition is true.",
    "import": "import finds a module, loads it if necessary, and binds it to a name.",
    "in": "in tests whether a container has an item, and names the iterable in a for loop.",
    "is": "is tests whether both operands are the same object.",
    "lambda": "lambda makes an anonymous function whose body is a single expression.",
    "nonlocal": "nonlocal makes assignments to the listed names act on variables of an outer function.",
    "not": "not gives True if its operand is false, and False otherwise.",
    "or": "or gives its left operand if that is true, and its right operand otherwise.",
    "pass": "pass does nothing; it fills a place where a statement is required.",
    "raise": "raise throws an exception, or throws the active one again when it stands alone.",
    "return": "return leaves the current function and gives its value to the caller.",
    "try": "try runs a block and passes exceptions from it to the except and finally clauses that follow.",
    "while": "while repeats its body as long as its condition is true.",
    "with": "with runs its body inside a context manager, which cleans up when the body ends or fails.",
    "yield": "yield gives a value to the caller of a generator and pauses it until asked for the next.",
}
"""Python keyword -> what it does."""

BETTER: dict[str, str] = {
    "anext": "Return an awaitable for the next item of an asynchronous iterator.",
    "asyncio.Future": "A result that is not there yet; a coroutine can await it and others can set it.",
    "bool": "Return True when the argument is true, False otherwise. bool is a subclass of int.",
    "breakpoint": "Call sys.breakpointhook, which starts the pdb debugger unless it was replaced.",
    "csv.reader": "Return an object that iterates over the rows of a CSV file as lists of strings.",
    "csv.writer": "Return a writer object that turns rows of values into lines of a CSV file.",
    "datetime.datetime": "A date and a time of day together, with an optional time zone.",
    "datetime.datetime.now": "Return the current date and time, in the given time zone or else "
    "in local time.",
    "dict.get": "Return the value for the key if the key is in the dictionary, else the default.",
    "dict.items": "Return a view of the dictionary's items, which are (key, value) pairs.",
    "dict.keys": "Return a view of the dictionary's keys.",
    "dict.pop": "Remove the key and return its value; if it is missing return the default or raise KeyError.",
    "dict.update": "Update the dictionary with a mapping, an iterable of pairs or keywords.",
    "dict.values": "Return a view of the dictionary's values.",
    "enumerate": "Return an iterator of pairs: a count from start (0 by default) and an item.",
    "filter": "Return an iterator over those items of an iterable for which a function gives a true value.",
    "list.reverse": "Reverse the list in place.",
    "map": "Return an iterator that applies a function to every item of one or more iterables.",
    "max": "Return the largest item of an iterable, or the largest of two or more arguments.",
    "min": "Return the smallest item of an iterable, or the smallest of two or more arguments.",
    "range": "An immutable sequence of integers from start (included) to stop (excluded) by step.",
    "type": "With one argument return the type of an object, with three make a new class.",
    "zip": "Return an iterator of tuples, the i-th of which holds the i-th item of every iterable.",
}
"""Name -> description, for objects whose docstring opens with something other than a sentence about them."""
