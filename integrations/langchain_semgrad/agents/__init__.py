"""The guard in agents and graphs: LangChain's `create_agent`, and hand-built graphs of LangGraph."""
