"""Sphinx configuration."""

import os
import sys
import warnings
from pathlib import Path

import otdml

sys.path.insert(0, str(Path(__file__).parent))

# The gallery runs many small problems: one thread pool, one palette, no window.
os.environ.setdefault("MPLBACKEND", "agg")
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "otdml"
author = "The otdml developers"
copyright = "2026, the otdml developers"
version = release = otdml.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "extensions.benchmark_tables",
    "extensions.coming_from",
    "extensions.feature_table",
    "extensions.links",
    "extensions.mathml",
    "extensions.speed_tables",
    "extensions.study_reports",
]
templates_path = ["_templates"]
exclude_patterns = ["build", "figures", "gallery/**/*.ipynb", "gallery/**/*.md5"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "otdml"
html_static_path = ["_static"]
html_css_files = ["otdml.css"]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Otherwise every Module would show the manual of torch's forward.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
add_module_names = False

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "extensions.gallery.Order",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "plot_gallery": os.environ.get("OTDML_GALLERY", "1") == "1",
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
}
