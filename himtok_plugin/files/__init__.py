"""Files as users have them: text in any Unicode encoding, and files that lie elsewhere than their name says.

Does not know what the files are about.
"""
