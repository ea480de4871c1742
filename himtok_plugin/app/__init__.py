"""The page to segment in: a client of a server, in a browser. Needs gradio; knows nothing of ms-swift."""
