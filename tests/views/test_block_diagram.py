import pytest
from matplotlib.patches import Circle

from stabviz.views import new_figure, plot_block


def heights(norm):
    """Height of the middle of each box and sum, by gid."""
    axes = plot_block(new_figure().subplots(), norm)
    shapes = {patch.get_gid(): patch for patch in axes.patches}
    return {
        gid: shape.center
        if isinstance(shape, Circle)
        else (shape.get_x() + shape.get_width() / 2, shape.get_y())
        for gid, shape in shapes.items()
    }


@pytest.mark.parametrize("name", ["attention", "feed-forward"])
def test_plot_block_sets_the_norm_in_the_branch_or_on_the_sum(name):
    pre, post = heights("pre"), heights("post")
    assert (
        pre.keys()
        == post.keys()
        == {f"{part}{name}" for part in ("", "norm-", "sum-") for name in ("attention", "feed-forward")}
    )
    # pre: norm, then branch, then sum, the norm beside the stream; post: branch, sum, norm, on the stream
    assert pre[f"norm-{name}"][1] < pre[name][1] < pre[f"sum-{name}"][1]
    assert pre[f"norm-{name}"][0] == pytest.approx(pre[name][0])
    assert post[name][1] < post[f"sum-{name}"][1] < post[f"norm-{name}"][1]
    assert post[f"norm-{name}"][0] == pytest.approx(post[f"sum-{name}"][0])


def test_plot_block_feeds_attention_before_the_feed_forward_pair():
    for norm in ("pre", "post"):
        middle = heights(norm)
        assert middle["sum-attention"][1] < middle["feed-forward"][1]


def test_plot_block_refuses_another_placement():
    with pytest.raises(ValueError, match="norm must be 'pre' or 'post'; got 'deepnorm'"):
        plot_block(new_figure().subplots(), "deepnorm")
