"""The room both services share: who may call, problems, request ids and logging, health."""
