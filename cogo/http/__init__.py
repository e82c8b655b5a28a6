"""HTTP of the process: server, app, who may, problems, probes and the messages routes."""
