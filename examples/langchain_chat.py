"""LangChain over `pad serve`: one question for two people, whose preferences go with the request.

pad serve BUNDLE
python examples/langchain_chat.py MODEL '{"cheerful": 1}' [http://127.0.0.1:8080/v1]
"""

import json
import sys

from langchain_openai import ChatOpenAI


def main(model: str, weights: str, url: str = "http://127.0.0.1:8080/v1") -> None:
    """Print the base's own reply, and the reply of a person with these weights, piece by piece."""
    chat = ChatOpenAI(model=model, base_url=url, api_key="none", temperature=0, max_tokens=64)
    question = "How was your day?"
    print("base:", chat.invoke(question).text)
    person = chat.bind(extra_body={"pad": {"weights": json.loads(weights)}})
    print("person: ", end="")
    for piece in person.stream(question):
        print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
