"""Imports form no circle, those inside functions and for types included."""

import grimp
import networkx as nx


def test_no_module_imports_itself_by_way_of_others():
    graph = grimp.build_graph("routespace")
    arrows = [(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)]
    assert len(arrows) > 1000
    assert [
        sorted(found) for found in nx.strongly_connected_components(nx.DiGraph(arrows)) if len(found) > 1
    ] == []
