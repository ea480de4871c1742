"""The server, `swift deploy`: requests of untrusted clients, and answers with segments.

Does not know how masks are predicted: answering/ does that. HTTP and the engines are ms-swift's.
"""
