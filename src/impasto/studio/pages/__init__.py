"""The pages of the studio, one module each: its routes, thin, and next to it what it shows.

A module of a page has `routes(studio)`, which `studio/app.py` collects. Routes read requests, ask
for what is shown in a thread, so that a slow disk stops nobody else, and render a template.
"""
