"""`routespace extract --drop-rates`: a part may do without rates of a pyramid, and says so."""

import json

from dense_tiny import dense_net

from routespace.deploy.bundle import Card, save_bundle
from routespace.deploy.extract import extract
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost


def test_a_limit_that_no_part_with_every_rate_keeps_can_be_kept_without_one(cli, tmp_path):
    net = dense_net("semantic", classes=4)
    small = extract(net, Architecture.staircase(net.architecture.grid))
    save_bundle(small, tmp_path / "whole", Card.of(small))
    names = [name for name in small.architecture.edges if "_r04_" in name and "embed" not in name]
    most = int(architecture_cost(Architecture.static(net.spec, names)).macs)
    args = "extract", tmp_path / "whole", "-o", tmp_path / "part", "--macs", most, "--no-evaluate"
    cli(*args).assert_refused("the least possible here")
    assert not (tmp_path / "part").exists()
    out = cli(*args, "--drop-rates").assert_fine().out
    told = "the architecture never reaches rates 8; semantic_fpn reads 4"
    assert told in out
    assert told in json.loads((tmp_path / "part" / "card.json").read_text())["remarks"][0]
