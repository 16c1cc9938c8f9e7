"""Prints its token once a second while it leads: start it twice, and stop the one that prints.

python examples/lead.py localhost:8080
"""

import asyncio
import sys

from election_agent_client import Agent, Term


async def work(term: Term) -> None:
    while True:
        print(f"leading with token {term.token}, for {term.remaining():.1f} s at least", flush=True)
        await asyncio.sleep(1)


async def main() -> None:
    async with Agent(sys.argv[1] if len(sys.argv) > 1 else "localhost:8080") as agent:
        async for term in agent.terms("example"):
            async with term:
                await work(term)


if __name__ == "__main__":
    asyncio.run(main())
