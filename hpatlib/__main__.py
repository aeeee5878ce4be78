from hpatlib.cli import app

app()
