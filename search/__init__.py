"""Part of the package: import it as `routespace.search`, never as `search`."""

if __name__ != "routespace.search":
    raise ImportError("import routespace.search, not search: the top-level folder is mapped into the package")
