"""Sample data in the forms that people have, read into plain arrays: see docs/data.md.

Nothing that is read is trusted: no pickle is loaded, no archive or image is unpacked beyond a limit, no link
out of a folder is followed. The same files give the same arrays, in the same order, on every machine.
"""
