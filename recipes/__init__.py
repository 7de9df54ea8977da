"""Part of the package: import it as `routespace.recipes`, never as `recipes`."""

if __name__ != "routespace.recipes":
    raise ImportError("import routespace.recipes, not recipes: the top-level folder is mapped into the package")
