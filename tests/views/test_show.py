import base64
import re
from xml.etree import ElementTree

from stabviz.views import new_figure, show


def test_show_gives_a_picture_whose_words_are_escaped():
    figure = new_figure()
    figure.subplots().plot([1, 2], gid="curve-a")
    shown = show(figure, 'loss "falls" <fast>')
    page = shown._repr_html_()
    assert 'alt="loss &quot;falls&quot; &lt;fast&gt;"' in page
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1)).decode()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert 'data-gid="curve-a"' in svg
    assert repr(shown) == 'loss "falls" <fast>'
