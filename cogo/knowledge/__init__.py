"""What COGO knows of repositories: an index of spans, a graph of code, and answers out of both.

Shared by the roles rag-embed, kg-builder, rag-dispatcher and gateway, by their routes, and by the
commands. It stands on the door alone; its statements are in `queries`, its tables in migration 0002.
Every function that touches the database takes the tenant, and reads nothing of another one.
"""
